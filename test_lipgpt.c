// Tests of lipgpt.c, which is included whole. Compiled twice: as it is, and with -DTEST_DOUBLE,
// where every float is a double, so that gradients check to 1e-8 and one wrong term cannot hide.
//
//   test-float ./lipgpt    VERBOSE=1 prints every error measured beside its limit
//
// The exit status tells whether anything failed. Limits are relative; the value seen when they were
// chosen stands beside them (float, double).

#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __clang__ // of lipgpt.c as doubles: float is a keyword, and libm's exp stays a scalar call
#pragma clang diagnostic ignored "-Wkeyword-macro"
#pragma clang diagnostic ignored "-Wpass-failed"
#endif
#ifdef TEST_DOUBLE
#define float double
enum { DOUBLE = 1 };
#else
enum { DOUBLE = 0 };
#endif
#define main lipgpt_main
#include "lipgpt.c"
#undef main

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
enum { THIN = 10 }; // sanitizers are slow: a tenth of the random cases
#else
enum { THIN = 1 };
#endif

// ------------------------------------------------------------------------------------------------
// Harness

static int passed, failed;
static bool verbose; // VERBOSE=1

__attribute__((format(printf, 2, 3)))
static void check(bool good, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    *(good ? &passed : &failed) += 1;
    if (!good) {
        printf("FAILED: ");
        vprintf(format, arguments);
        printf("\n");
    }
    va_end(arguments);
}

// at_most: the shape of most checks; a NaN fails.
static void at_most(double value, double limit, const char *what) {
    if (verbose)
        printf("  %-60s %12.7g of %.7g\n", what, value, limit);
    check(value <= limit, "%s: %.9g, at most %.9g", what, value, limit);
}

static void near(double value, double wanted, double relative, const char *what) {
    if (verbose)
        printf("  %-60s %10.3g of %.3g\n", what, fabs(value / wanted - 1), relative);
    check(fabs(value - wanted) <= relative * fabs(wanted), "%s: %.12g, wanted %.12g within %.2g",
          what, value, wanted, relative);
}

static double worse(double a, double b) { return b > a || isnan(b) ? b : a; } // NaN is worst

static const double epsilon = DOUBLE ? 0x1p-53 : 0x1p-24; // half a unit in the last place of 1

static void randomize(float *x, size_t n, double size, Rng *rng) {
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(size * rng_normal(rng));
}

static double between(double low, double high, Rng *rng) { // log-uniform
    return low * pow(high / low, rng_uniform(rng));
}

// singular_values: of W (rows, cols), largest first; returns their number. One-sided Jacobi in
// double: the rows of the wide one of W and W^T are rotated in pairs until orthogonal; their norms
// are the values.
static int singular_values(double *sigma, const float *W, int rows, int cols) {
    int n = rows < cols ? rows : cols, k = rows < cols ? cols : rows;
    double *a = doubles((size_t)n * k), total = 0;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            a[rows < cols ? i * k + j : j * k + i] = (double)W[i * cols + j];
    for (int i = 0; i < n * k; i++)
        total += a[i] * a[i];
    for (int sweep = 0, turned = 1; sweep < 60 && turned && isfinite(total); sweep++)
        for (int i = turned = 0; i < n; i++)
            for (int j = i + 1; j < n; j++) {
                double *x = a + i * k, *y = a + j * k, xx = 0, yy = 0, xy = 0;
                #pragma omp simd reduction(+ : xx, yy, xy)
                for (int p = 0; p < k; p++)
                    xx += x[p] * x[p], yy += y[p] * y[p], xy += x[p] * y[p];
                double size = sqrt(xx) * sqrt(yy);
                if (size <= 1e-30 * total || fabs(xy) <= 1e-14 * size)
                    continue;
                double zeta = (yy - xx) / (2 * xy);
                double t = (zeta < 0 ? -1 : 1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
                double c = 1 / sqrt(1 + t * t), s = c * t;
                turned = 1;
                for (int p = 0; p < k; p++) {
                    double first = x[p];
                    x[p] = c * first - s * y[p];
                    y[p] = s * first + c * y[p];
                }
            }
    for (int i = 0; i < n; i++) {
        double sum = total - total; // NaN if anything is
        for (int p = 0; p < k; p++)
            sum += a[i * k + p] * a[i * k + p];
        int place = i;
        for (; place > 0 && sigma[place - 1] < sqrt(sum); place--)
            sigma[place] = sigma[place - 1];
        sigma[place] = sqrt(sum);
    }
    free(a);
    return n;
}

// norm_by_jacobi: the RMS->RMS norm of W (rows, cols).
static double norm_by_jacobi(const float *W, int rows, int cols) {
    double sigma[512];
    singular_values(sigma, W, rows, cols);
    return sigma[0] * sqrt((double)cols / rows);
}

// with_singular_values: W (rows, cols) = P diag(sigma) Q, P and Q products of random reflections.
static void with_singular_values(float *W, int rows, int cols, const double *sigma, Rng *rng) {
    double *a = doubles((size_t)rows * cols), *v = doubles((size_t)(rows + cols));
    for (int i = 0; i < rows && i < cols; i++)
        a[i * cols + i] = sigma[i];
    for (int reflection = 0; reflection < 6; reflection++) {
        bool left = reflection % 2;
        int n = left ? rows : cols, others = left ? cols : rows;
        int along = left ? cols : 1, across = left ? 1 : cols;
        double size = 0;
        for (int i = 0; i < n; i++)
            v[i] = rng_normal(rng), size += v[i] * v[i];
        for (int j = 0; j < others; j++) {
            double *x = a + j * across, dot = 0;
            for (int i = 0; i < n; i++)
                dot += v[i] * x[i * along];
            for (int i = 0; i < n; i++)
                x[i * along] -= 2 * dot / size * v[i];
        }
    }
    for (int i = 0; i < rows * cols; i++)
        W[i] = (float)a[i];
    free(a), free(v);
}

static Scratch scratch_create(size_t most, size_t side) {
    return (Scratch){floats(most), floats(most), floats(side * side), floats(side * side)};
}

static void scratch_free(Scratch *s) { free(s->x), free(s->y), free(s->gram), free(s->gram2); }

// ------------------------------------------------------------------------------------------------
// Tools and matrices

// The generator is splitmix64: its published first outputs, and draws in range.
static void test_rng(void) {
    static const uint64_t first[] = {0xe220a8397b1dcdafu, 0x6e789e6aa1b965f4u, 0x06c45d188009454fu};
    Rng rng = {0};
    for (int i = 0; i < 3; i++) {
        uint64_t value = rng_next(&rng);
        check(value == first[i], "splitmix64 output %d: %016llx", i, (unsigned long long)value);
    }
    double sum = 0, sum2 = 0, sum4 = 0;
    for (int i = 0; i < 100000; i++) {
        size_t n = 1 + (size_t)i % 1000, below = rng_below(&rng, n);
        double uniform = rng_uniform(&rng), x = rng_normal(&rng);
        if (below >= n || !(uniform >= 0 && uniform < 1))
            check(false, "draw %d: rng_below(%zu) = %zu, rng_uniform = %g", i, n, below, uniform);
        sum += x, sum2 += x * x, sum4 += x * x * x * x;
    }
    at_most(fabs(sum / 1e5), 0.01, "mean of normals");           // 0.0034
    near(sum2 / 1e5, 1, 0.02, "variance of normals");            // 0.0054
    near(sum4 / 1e5, 3, 0.05, "fourth moment of normals");       // 0.011
}

// matmul_error: one product against a double loop, NaN in the ignored triangle and around C; error
// relative to the sum of absolute terms.
static double matmul_error(int m, int n, int depth, Triangle triangle, int kind, Rng *rng) {
    double scale = kind & 1 ? 1 : rng_normal(rng), worst = 0;
    int add = kind >> 1 & 1, pad = kind >> 2 & 3;
    bool flip_a = kind >> 4 & 1, flip_b = kind >> 5 & 1;
    size_t row = (size_t)n + (size_t)pad, size = (size_t)m * row;
    size_t used_a = (size_t)(m + pad) * (size_t)(depth + pad);
    size_t used_b = (size_t)(n + pad) * (size_t)(depth + pad);
    float *A = floats(used_a), *B = floats(used_b), *C = floats(size), *before = floats(size);
    randomize(A, used_a, 1, rng), randomize(B, used_b, 1, rng), randomize(C, size, 1, rng);
    Mat a = {A, m, depth, (size_t)(depth + pad), 1}, b = {B, depth, n, (size_t)(n + pad), 1};
    if (flip_a) a.row = 1, a.col = (size_t)(m + pad);
    if (flip_b) b.row = 1, b.col = (size_t)(depth + pad);
    for (int i = 0; i < m; i++)
        for (int k = 0; k < depth; k++)
            if ((triangle == LOWER_LEFT && k > i) || (triangle == UPPER_LEFT && k < i))
                A[(size_t)i * a.row + (size_t)k * a.col] = NAN;
    for (size_t i = 0; i < size; i++)
        C[i] = i % row < (size_t)n && add ? C[i] : (float)NAN;
    memcpy(before, C, size * sizeof(float));
    matmul((Mat){C, m, n, row, 1}, a, b, (float)scale, add, triangle);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < (int)row; j++) {
            double sum = 0, terms = 0, out = (double)C[(size_t)i * row + j];
            if (j >= n && !isnan(out))
                worst = INFINITY; // wrote beside the matrix
            if (j >= n || (triangle == LOWER_OUT && j > i))
                continue;
            int first = triangle == UPPER_LEFT ? i : 0;
            for (int k = first; k < (triangle == LOWER_LEFT ? i + 1 : depth); k++) {
                double term = (double)A[(size_t)i * a.row + (size_t)k * a.col] *
                              (double)B[(size_t)k * b.row + (size_t)j * b.col];
                sum += term, terms += fabs(term);
            }
            double old = add ? (double)before[(size_t)i * row + j] : 0;
            double error = fabs(out - (old + scale * sum)) / (fabs(old) + fabs(scale) * terms);
            worst = worse(worst, error);
        }
    free(A), free(B), free(C), free(before);
    return worst;
}

// Small sizes in every layout, then sizes around the blocking (256 deep, 512 wide), all triangles.
static void test_matmul(void) {
    static const struct { int m, n, depth; Triangle triangle; } large[] = {
        {13, 511, 255, FULL}, {25, 513, 257, FULL}, {7, 1030, 600, FULL}, {530, 530, 12, LOWER_OUT},
        {65, 65, 520, LOWER_OUT}, {300, 30, 300, LOWER_LEFT}, {530, 14, 530, LOWER_LEFT},
        {300, 30, 300, UPPER_LEFT}, {530, 14, 530, UPPER_LEFT}};
    Rng rng = {1};
    double small = 0, worst = 0;
    for (int trial = 0, kind = 0; trial < 8000 / THIN; trial++, kind = (kind + 37) % 64) {
        Triangle triangle = (Triangle)(trial % 4);
        bool left = triangle == LOWER_LEFT || triangle == UPPER_LEFT;
        int m = 1 + (int)rng_below(&rng, 40), n = 1 + (int)rng_below(&rng, 70);
        int depth = left ? m : 1 + (int)rng_below(&rng, 40);
        n = triangle == LOWER_OUT ? m : n;
        small = worse(small, matmul_error(m, n, depth, triangle, kind, &rng));
    }
    for (int i = 0; i < 9; i++)
        for (int kind = i % 4; kind < 64; kind += 21)
            worst = worse(worst, matmul_error(large[i].m, large[i].n, large[i].depth,
                                              large[i].triangle, kind, &rng));
    at_most(small / epsilon, 10, "matmul, small: error / (eps sum of |terms|)");
    at_most(worst / epsilon, 20, "matmul, large: error / (eps sum of |terms|)");
}

// ------------------------------------------------------------------------------------------------
// Layers

// fast_exp against libm: accuracy on its range, clamped outside, NaN kept.
static void test_exp(void) {
#ifndef TEST_DOUBLE
    double worst = 0, where = 0;
    for (uint32_t bits = 0; bits < 0x42ae0001u; bits += 211 * THIN) // every 211th float in [0, 87]
        for (int sign = -1; sign <= 1; sign += 2) {
            float x;
            memcpy(&x, &bits, sizeof x);
            x *= (float)sign;
            double error = fabs(fast_exp(x) / exp(x) - 1);
            if (!(error <= worst))
                worst = error, where = x;
        }
    if (verbose)
        printf("  fast_exp is worst at %.9g\n", where);
    at_most(worst, 1e-7, "fast_exp, relative error"); // 7.9e-8 over all floats
    check(fast_exp(0) == 1, "fast_exp(0) = %.9g", fast_exp(0));
    volatile float most = 87, infinite = INFINITY; // or compilers fold, without fused multiply-adds
    float top = fast_exp(most), bottom = fast_exp(-most);
    for (float x = 87; x < 1e38f; x *= 1.5f)
        check(fast_exp(x) == top && fast_exp(-x) == bottom, "fast_exp(+-%g)", x);
    check(fast_exp(infinite) == top && fast_exp(-infinite) == bottom && bottom > 0 && isfinite(top),
          "fast_exp at infinity: %g, %g", (double)top, (double)bottom);
#endif
    check(isnan(fast_exp((float)NAN)), "fast_exp(NaN) = %g", (double)fast_exp((float)NAN));
}

// GELU: the largest slope, on which the certificate rests, values, and |phi(z)| <= |z| / 1.1289.
static void test_gelu(void) {
    double steepest = 0, implemented = 0, worst = 0, largest = 0, r = sqrt(2 / acos(-1));
    for (double x = 1.3; x < 1.6; x += 1e-6 * THIN) {
        double u = r * (x + 0.044715 * x * x * x), t = tanh(u), one = 1;
        double slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * r * (1 + 3 * 0.044715 * x * x);
        float z = (float)x, dz = (float)one;
        activation_backward(&dz, &z, GELU, 1, 1);
        steepest = worse(steepest, slope), implemented = worse(implemented, (double)dz);
    }
    for (double x = -12; x < 12; x += 1e-5 * THIN) {
        float z = (float)x, phi;
        activation_forward(&phi, &z, GELU, 1, 1);
        double y = (double)z, u = r * (y + 0.044715 * y * y * y), exact = 0.5 * y * (1 + tanh(u));
        worst = worse(worst, fabs((double)phi * GELU_DIVISOR - exact) / (fabs(y) + 1e-30));
        largest = worse(largest, fabs((double)phi) * GELU_DIVISOR / (fabs(y) + 1e-30));
    }
    at_most(steepest, GELU_SLOPE, "slope of GELU");
    near(steepest, GELU_SLOPE, 1e-7, "slope of GELU is GELU_SLOPE");                      // 3e-8
    at_most(implemented * GELU_DIVISOR, GELU_SLOPE * (1 + 8 * epsilon), "slope as implemented");
    at_most(worst, DOUBLE ? 1e-7 : 4e-7, "GELU against libm's tanh, relative to |z|");
    at_most(largest, 1 + 4 * epsilon, "|GELU(z)| / |z|");
}

// Gradient checks: the loss is sum_i C_i Y_i for random C, so dY = C. Slopes are differences of
// fourth order; an error is |difference| / |gradient| over the whole tensor.
enum { T = 7, I = 6, O = 5, H = 3, D = 12, CONTEXT = 10, POOL = 1024 };
static float X[POOL], W[POOL], B[POOL], Y[POOL], C[POOL], P[POOL], dX[POOL], dW[POOL], dB[POOL];
static const uint16_t ids[] = {3, 1, 4, 1, 0, 3, 2, 0};
static const double difference_step = DOUBLE ? 3e-4 : 0.05, layer_limit = DOUBLE ? 1e-8 : 2e-3;
static Activation phi;
static Model *the_model;

static void check_gradient(double (*loss)(void), float *x, const float *gradient, size_t n,
                           double limit, const char *what) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i += n > 60 ? THIN : 1) {
        float kept = x[i];
        double f[5], h = difference_step;
        for (int k = -2; k <= 2; k++)
            x[i] = kept + (float)(k * h), f[k + 2] = k ? loss() : 0;
        x[i] = kept;
        double slope = (8 * (f[3] - f[1]) - (f[4] - f[0])) / (12 * h);
        difference += square(slope - (double)gradient[i]), size += square((double)gradient[i]);
    }
    check(size > 1e-8, "%s: the gradient is zero", what);
    at_most(sqrt(difference / size), limit, what);
}

static double response(size_t n) { // C . Y
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)C[i] * (double)Y[i];
    return sum;
}

// fresh: random X, W, B, P, C; gradients at 1: a backward that sets instead of adding shows.
static void fresh(uint64_t seed) {
    Rng rng = {seed};
    float *random[] = {X, W, B, P, C}, *gradients[] = {dX, dW, dB};
    for (int i = 0; i < 5; i++)
        randomize(random[i], POOL, 1, &rng);
    for (int i = 0; i < 3 * POOL; i++)
        gradients[i / POOL][i % POOL] = 1;
}

static float *minus_one(float *gradient) { // what was added to a gradient since fresh
    for (int i = 0; i < POOL; i++)
        gradient[i] -= 1;
    return gradient;
}

static double embedding_loss(void) { return embedding_forward(Y, W, ids, T, D), response(T * D); }
static double linear_loss(void) { return linear_forward(Y, X, W, B, T, I, O), response(T * O); }
static double mix_loss(void) { return mix_forward(Y, X, P, W, 0.7, 0.4, T, I, D), response(T * D); }
static double rope_loss(void) {
    memcpy(Y, X, sizeof Y);
    return rope(Y, the_model->angles, 1, T, D, H), response(T * 3 * D);
}
static float *position_bias; // B or NULL
static double attention_loss(void) {
    return attention_forward(Y, W, X, position_bias, 0.6, CONTEXT, T, D, H), response(T * D);
}
static double activation_loss(void) { return activation_forward(Y, X, phi, T, I), response(T * I); }
static double entropy_loss(void) {
    int correct = 0;
    memcpy(Y, X, sizeof Y);
    return cross_entropy_forward(Y, ids, &correct, T, O) / 3;
}
static double softmax_loss(void) { return memcpy(Y, X, sizeof Y), softmax(Y, O); }

static void test_gradients(void) {
    fresh(1);
    embedding_backward(dW, C, ids, T, D);
    check_gradient(embedding_loss, W, minus_one(dW), 5 * D, layer_limit, "embedding: dE");
    fresh(2);
    linear_backward(dX, dW, dB, C, X, W, T, I, O);
    check_gradient(linear_loss, X, minus_one(dX), T * I, layer_limit, "linear: dx");
    check_gradient(linear_loss, W, minus_one(dW), O * I, layer_limit, "linear: dW");
    check_gradient(linear_loss, B, minus_one(dB), O, layer_limit, "linear: db");
    fresh(3);
    memcpy(dX, C, sizeof dX);
    mix_backward(dX, dB, dW, P, W, 0.7, 0.4, T, I, D);
    check_gradient(mix_loss, X, dX, T * D, layer_limit, "mix: dx");
    check_gradient(mix_loss, P, dB, T * I, layer_limit, "mix: dh");
    check_gradient(mix_loss, W, minus_one(dW), D * I, layer_limit, "mix: dW");
    fresh(4);
    memcpy(dX, C, sizeof dX);
    rope(dX, the_model->angles, -1, T, D, H);
    check_gradient(rope_loss, X, dX, T * 3 * D, layer_limit, "rope: dqkv");
    for (int biased = 0; biased < 2; biased++) {
        fresh(5 + (uint64_t)biased);
        position_bias = biased ? B : NULL;
        attention_loss(); // leaves A in W
        memset(Y, 0, sizeof Y);
        attention_backward(dX, Y, biased ? dB : NULL, C, W, X, 0.6, CONTEXT, T, D, H);
        check_gradient(attention_loss, X, dX, T * 3 * D, layer_limit, "attention: dqkv");
        if (biased)
            check_gradient(attention_loss, B, minus_one(dB), H * CONTEXT, layer_limit,
                           "attention: db");
    }
    for (phi = GELU; phi <= MAXMIN; phi++) {
        fresh(7);
        for (int i = 0; i < T * I && !DOUBLE; i++) // no kink of |x| or max within two steps
            X[i] = (float)(floor(4 * (double)X[i]) + 0.5) / 2 + (i % I < I / 2 ? 0.125f : 0);
        memcpy(dX, C, sizeof dX);
        activation_backward(dX, X, phi, T, I);
        check_gradient(activation_loss, X, dX, T * I, layer_limit,
                       phi == GELU ? "GELU: dz" : phi == ABS ? "ABS: dz" : "MAXMIN: dz");
    }
    fresh(8);
    entropy_loss();
    cross_entropy_backward(Y, ids, 3, T, O);
    memcpy(dX, Y, sizeof dX);
    check_gradient(entropy_loss, X, dX, T * O, layer_limit, "cross entropy: dlogits");
    softmax_loss(); // the gradient of log sum exp is the softmax itself
    memcpy(dX, Y, sizeof dX);
    check_gradient(softmax_loss, X, dX, O, layer_limit, "softmax: d log sum exp");
}

// The activations in their own words: max and min of pairs, |z|; both keep every token's RMS norm.
static void test_activations(void) {
    fresh(9);
    activation_forward(Y, X, MAXMIN, T, I);
    activation_forward(P, X, ABS, T, I);
    for (int t = 0; t < T; t++) {
        const float *z = X + t * I, *a = Y + t * I;
        for (int i = 0; i < I / 2; i++)
            check(a[i] == (z[i] > z[i + 3] ? z[i] : z[i + 3]) &&
                      a[i + 3] == (z[i] > z[i + 3] ? z[i + 3] : z[i]), "MaxMin at %d, %d", t, i);
        near(rms(a, I), rms(z, I), 1e-15, "MaxMin keeps the norm");
        near(rms(P + t * I, I), rms(z, I), 1e-15, "ABS keeps the norm");
    }
}

// Softmax: sums to 1, ignores a common shift, survives large scores; cross entropy counts.
static void test_softmax(void) {
    float x[70], shifted[70], worst = 0;
    Rng rng = {10};
    for (int n = 1; n <= 70; n++) {
        randomize(x, 70, 3, &rng);
        double sum = 0, exact = 0;
        for (int i = 0; i < n; i++)
            shifted[i] = x[i] = (float)(floor((double)x[i] * 64) / 64), shifted[i] += 512;
        for (int i = 0; i < n; i++)
            exact += exp((double)x[i]);
        double lse = softmax(x, n), moved = softmax(shifted, n) - 512;
        worst = worse(worst, fabs(lse - log(exact)) / (1 + fabs(lse)));
        worst = worse(worst, fabs(moved - lse) / 512);
        for (int i = 0; i < n; i++)
            sum += (double)x[i], worst = worse(worst, fabs((double)x[i] / (double)shifted[i] - 1));
        worst = worse(worst, fabs(sum - 1));
    }
    at_most(worst, 8 * epsilon, "softmax: sum, shift and log sum exp");
    fresh(11);
    int correct = 0, wanted = 0;
    for (int t = 0; t < T; t++) {
        int best = 0;
        for (int v = 0; v < O; v++)
            best = X[t * O + v] > X[t * O + best] ? v : best;
        wanted += best == ids[t];
    }
    cross_entropy_forward(X, ids, &correct, T, O);
    check(correct == wanted && wanted > 0, "cross entropy: %d right, wanted %d", correct, wanted);
}

// Rope: the pairing and the angles, no norm changes, backward is the inverse, and for one query and
// one key at every position the score depends on i - j alone.
static void test_rope(void) {
    enum { DH = D / H };
    double worst = 0;
    fresh(12);
    memcpy(Y, X, sizeof Y);
    rope(Y, the_model->angles, 1, T, D, H);
    for (int t = 0; t < T; t++)
        for (int h = 0; h < 3 * H; h++) {
            const float *x = X + t * 3 * D + h * DH, *y = Y + t * 3 * D + h * DH;
            worst = worse(worst, fabs(rms(y, DH) / rms(x, DH) - 1));
            for (int i = 0; i < DH / 2; i++) {
                double angle = h < 2 * H ? t * pow(10000, -i / (DH / 2.0)) : 0; // v is left alone
                double low = (double)x[i], high = (double)x[i + DH / 2];
                double c = cos(angle), s = sin(angle);
                worst = worse(worst, fabs((double)y[i] - (c * low - s * high)));
                worst = worse(worst, fabs((double)y[i + DH / 2] - (c * high + s * low)));
            }
        }
    rope(Y, the_model->angles, -1, T, D, H);
    for (int i = 0; i < T * 3 * D; i++)
        worst = worse(worst, fabs((double)(Y[i] - X[i])));
    for (int t = 1; t < T; t++)
        memcpy(X + t * 3 * D, X, 3 * D * sizeof(float));
    rope(X, the_model->angles, 1, T, D, H);
    double score[T] = {0}, size = 0;
    for (int i = 0; i < T; i++)
        for (int j = 0; j <= i; j++) {
            double dot = 0;
            for (int k = 0; k < DH; k++)
                dot += (double)X[i * 3 * D + k] * (double)X[j * 3 * D + D + k];
            score[i - j] = j ? score[i - j] : dot, size = larger(size, fabs(dot));
            worst = worse(worst, fabs(dot - score[i - j]) / size);
        }
    at_most(fabs(score[1] / score[0] - 1) < 0.01, 0, "rope: the score depends on i - j");
    at_most(worst, 20 * epsilon, "rope: angles, norm, inverse, relative position");
}

// Attention against its definition in double loops, with and without position bias, T < context.
static void test_attention(void) {
    double worst = 0;
    for (int biased = 0; biased < 2; biased++) {
        fresh(13);
        attention_forward(Y, W, X, biased ? B : NULL, 0.6, CONTEXT, T, D, H);
        for (int h = 0; h < H; h++)
            for (int i = 0; i < T; i++) {
                double p[T], sum = 0;
                const float *q = X + i * 3 * D + h * (D / H);
                for (int j = 0; j <= i; j++) {
                    const float *k = X + j * 3 * D + D + h * (D / H);
                    double score = biased ? (double)B[h * CONTEXT + i - j] : 0;
                    for (int e = 0; e < D / H; e++)
                        score += 0.6 * (double)q[e] * (double)k[e];
                    sum += p[j] = exp(score);
                }
                for (int e = 0; e < D / H; e++) {
                    double out = 0;
                    for (int j = 0; j <= i; j++)
                        out += p[j] / sum * (double)X[j * 3 * D + 2 * D + h * (D / H) + e];
                    worst = worse(worst, fabs(out - (double)Y[i * D + h * (D / H) + e]));
                }
            }
    }
    at_most(worst, 40 * epsilon, "attention against double loops");
}

// ------------------------------------------------------------------------------------------------
// The model

enum { PAPER, TIGHT, ABSOLUTE, PLAIN, VARIANTS };
static const char *const variant_names[] = {"paper", "tight", "abs", "plain"};

// tiny: a small network of each family; caps 0 are off.
static Config tiny(int variant) {
    Config c = {.width = D, .heads = H, .blocks = 2, .context = CONTEXT, .mlp_ratio = 2,
                .vocabulary = 11, .residual = 0.25, .attention_factor = 1.0 / 3, .softmax_scale = 1,
                .batch = 6, .lanes = 4, .beta = 0.9, .mass = 32, .share_embed = 1, .share_head = 1,
                .share_bias = 0.1};
    if (variant == TIGHT) {
        c.activation = MAXMIN, c.position_bias = c.bias = c.per_head = 1;
        c.residual = 0.5, c.attention_factor = 1, c.share_embed = 50, c.share_head = 20;
    } else if (variant == ABSOLUTE)
        c.activation = ABS, c.bias = 1, c.softmax_scale = 2, c.residual = 0.3;
    else if (variant == PLAIN)
        c.plain_residual = c.position_bias = 1;
    return c;
}

// random_model: weights of norm 2 and more everywhere.
static Model *random_model(const Config *c, uint64_t seed) {
    Model *m = model_create(c);
    Rng rng = {seed};
    for (int i = 0; i < m->count; i++) {
        Tensor *t = &m->tensors[i];
        double norm = t->kind == QUERY || t->kind == KEY ? 3 : 1; // scores that matter
        double size = is_matrix(t->kind) ? norm / sqrt(t->cols) : 1;
        randomize(m->weights + t->offset, t->size, size, &rng);
    }
    return m;
}

static Workspace *space;
static double sequence_mean(void) {
    int correct = 0;
    return sequence_loss(the_model, space, ids, ids + 1, T, NULL, T, &correct) / T;
}
static double loss_from_x(void) {
    int correct = 0, V = the_model->config.vocabulary;
    run(the_model, space, X, T);
    return cross_entropy_forward(space->logits, ids + 1, &correct, T, V) / T;
}

// Every tensor's gradient of the whole network, and that of its input, in every family.
static void test_model_gradients(void) {
    Model *outer = the_model;
    double limit = DOUBLE ? 1e-8 : 1e-2; // 3e-9, 1.5e-3: W_q of the last block
    for (int variant = 0; variant < (DOUBLE ? VARIANTS : 1); variant++) { // float: |z| has kinks
        Config c = tiny(variant);
        Model *m = the_model = random_model(&c, 20 + (uint64_t)variant);
        space = workspaces_create(&c, 1);
        float *g = floats(m->size);
        int correct = 0;
        sequence_loss(m, space, ids, ids + 1, T, g, T, &correct);
        memcpy(dX, space->dx, sizeof(float) * T * D);
        for (int i = 0; i < m->count; i++) {
            Tensor *t = &m->tensors[i];
            char what[80];
            snprintf(what, sizeof what, "%s: %s", variant_names[variant], t->name);
            if (t->size)
                check_gradient(sequence_mean, m->weights + t->offset, g + t->offset, t->size, limit,
                               what);
        }
        embedding_forward(X, values(m, m->weights, EMBED, 0), ids, T, D);
        check_gradient(loss_from_x, X, dX, T * D, limit, "gradient of the embeddings, s->dx");
        free(g), workspaces_free(space, 1), model_free(m);
    }
    the_model = outer;
}

// Causality: a token changes nothing before it, and a shorter sequence is a prefix of a longer one.
static void test_causality(void) {
    for (int variant = 0; variant < VARIANTS; variant++) {
        Config c = tiny(variant);
        Model *m = random_model(&c, 30 + (uint64_t)variant);
        Workspace *s = workspaces_create(&c, 1);
        int V = c.vocabulary, full = CONTEXT;
        float *E = values(m, m->weights, EMBED, 0), logits[CONTEXT * 11];
        uint16_t tokens[CONTEXT] = {5, 3, 8, 1, 10, 0, 2, 2, 7, 9};
        embedding_forward(s->blocks[0].x, E, tokens, full, D);
        forward(m, s, full);
        memcpy(logits, s->logits, sizeof logits);
        for (int t = 0; t < full; t++) {
            uint16_t kept = tokens[t];
            tokens[t] = 4;
            embedding_forward(s->blocks[0].x, E, tokens, full, D);
            forward(m, s, full);
            check(!memcmp(logits, s->logits, (size_t)t * V * sizeof(float)),
                  "%s: token %d changes the past", variant_names[variant], t);
            double moved = 0, size = 0, error = 0;
            for (int i = t * V; i < full * V; i++) {
                moved += square((double)(logits[i] - s->logits[i]));
                size += square((double)logits[i]);
            }
            check(moved > 1e-4 * size, "%s: token %d changes nothing", variant_names[variant], t);
            tokens[t] = kept;
            embedding_forward(s->blocks[0].x, E, tokens, t + 1, D);
            forward(m, s, t + 1);
            for (int i = 0; i < (t + 1) * V; i++)
                error = worse(error, fabs((double)(logits[i] - s->logits[i])));
            at_most(error, 40 * epsilon * sqrt(size), "prefix of a longer sequence");
        }
        workspaces_free(s, 1), model_free(m);
    }
}

// ------------------------------------------------------------------------------------------------
// Muon and the caps

// orthogonalize: singular values in the published band, singular vectors kept, never above 1.
static void test_orthogonalize(void) {
    static const int shapes[][2] = {{1, 1},   {4, 4},    {16, 16}, {24, 40},
                                    {33, 33}, {32, 128}, {64, 64}};
    double most = 0, least = INFINITY, above = 0, sigma[128], before[128];
    int cases = 0;
    Rng rng = {40};
    Scratch s = scratch_create(128 * 128, 128);
    for (int trial = 0; trial < 7 * (THIN > 1 ? 4 : 20); trial++) {
        int n = shapes[trial % 7][0], k = shapes[trial % 7][1];
        float *input = floats((size_t)n * k);
        randomize(s.x, (size_t)n * k, between(1e-6, 1e6, &rng), &rng);
        double nuclear = 0, frobenius = 0, trace = 0;
        memcpy(input, s.x, (size_t)n * k * sizeof(float));
        singular_values(before, input, n, k);
        for (int i = 0; i < n; i++)
            nuclear += before[i], frobenius += square(before[i]);
        if (before[n - 1] >= 0.002 * sqrt(frobenius)) {
            orthogonalize(&s, n, k);
            for (int i = 0; i < n * k; i++)
                trace += (double)input[i] * (double)s.x[i]; // <M, U V^T> is the nuclear norm
            singular_values(sigma, s.x, n, k);
            most = worse(most, sigma[0]), least = smaller(least, sigma[n - 1]);
            near(trace / nuclear, 0.99745, 0.00196, "orthogonalize: <M, orth M> / nuclear norm");
            cases++;
        }
        free(input);
    }
    check(cases >= 12, "orthogonalize: only %d well-conditioned inputs", cases);
    at_most(most, 0.9994, "orthogonalize: largest singular value");
    at_most(0.9955, least, "orthogonalize: 0.9955 and the smallest singular value");
    for (int trial = 0; trial < 10000 / THIN; trial++) {
        int n = 1 + (int)rng_below(&rng, 12), k = n + (int)rng_below(&rng, (size_t)(17 - n));
        double scale = trial % 3 == 0 ? 1 : trial % 3 == 1 ? 1e-30 : 1e30;
        for (int i = 0; i < n; i++) // spread over 1e-6 .. 1; in half of the cases some are zero
            before[i] = trial % 2 && i % 3 == 1 ? 0 : scale * between(1e-6, 1, &rng);
        if (trial % 50 == 0)
            memset(before, 0, sizeof before);
        with_singular_values(s.x, n, k, before, &rng);
        orthogonalize(&s, n, k);
        singular_values(sigma, s.x, n, k);
        above = worse(above, sigma[0]);
        if (trial % 50 == 0)
            check(sigma[0] == 0, "orthogonalize: zero became %g", sigma[0]);
    }
    for (int n = 60; n <= 100; n += 40) { // larger, rank one third
        for (int i = 0; i < n; i++)
            before[i] = i % 3 ? 0 : between(1e-4, 1, &rng);
        with_singular_values(s.x, n, n + 28, before, &rng);
        orthogonalize(&s, n, n + 28);
        singular_values(sigma, s.x, n, n + 28);
        above = worse(above, sigma[0]);
    }
    at_most(above, 0.9994, "orthogonalize: largest singular value, any input");
    scratch_free(&s);
}

// soft_cap_strength solves the coupling (identity of its composed polynomial) with the smallest a,
// and vanishes with the step like sqrt(u / 3w) / w^2.
static void test_coupling(void) {
    for (double w = 0.2; w < 5; w *= 1.7) {
        for (double u = 0.3 * w; u > 1e-4 * w; u /= 3) {
            double k = w + u, a = soft_cap_strength(k, w), b = 0.99 * a;
            double x = k - a * k * k * k, z = k - b * k * k * k;
            near(x + a * x * x * x, w, 1e-14, "coupling: k ends at w");
            double a2 = a * a, cubes = 3 * a2 * a * pow(k, 7);
            double equation = k - 3 * a2 * pow(k, 5) + cubes - a2 * a2 * pow(k, 9);
            near(equation, w, 1e-13, "coupling: the equation in powers of a");
            check(z + b * z * z * z > w, "coupling: at cap %g, step %g a smaller a would do", w, u);
        }
        double u = 1e-10 * w;
        near(soft_cap_strength(w + u, w) * w * w, sqrt(u / (3 * w)), 1e-4, "coupling: a tiny step");
    }
}

// soft_cap on single numbers (1 x 1 matrices): whatever is below the top ends below the cap, order
// is kept, and what is below a tenth of the cap moves by less than 1 %.
static void test_soft_cap(void) {
    Scratch s = scratch_create(1, 1);
    double worst = 0, moved = 0, turned = 0;
    for (double excess = 1e-6; excess < 20; excess *= 1.3) {
        double w = 1.7, top = w * (1 + excess), last = 0;
        for (int i = 0; i <= 2000 / THIN; i++) {
            double x = top * i * THIN / 2000;
            s.x[0] = (float)x;
            soft_cap(&s, 1, 1, top, w);
            double y = (double)s.x[0];
            worst = worse(worst, y / w), turned = worse(turned, (last - y) / w);
            if (x > 0 && x <= w / 10)
                moved = worse(moved, fabs(y / x - 1));
            last = y;
        }
    }
    at_most(worst, 1, "soft_cap: largest value / cap");
    at_most(turned, 8 * epsilon, "soft_cap: order of values, / cap");
    at_most(moved, 0.01, "soft_cap: shift of values below cap / 10");
    scratch_free(&s);
}

// After a step of any size the norm is within the cap, to 1e-6; along -W a step adds to every
// singular value; along W it does when the decay is more than all, lambda u > 1.
static void test_cap_after_step(void) {
    Config c = tiny(PAPER);
    double worst = 0;
    Rng rng = {50};
    for (int trial = 0; trial < 1000 / (THIN > 1 ? 4 : 1); trial++) {
        int rows = 1 + (int)rng_below(&rng, 16), cols = 1 + (int)rng_below(&rng, 16);
        double w = between(0.1, 4, &rng), u = w * between(1e-4, 20, &rng), sigma[16];
        double unit = sqrt((double)rows / cols), most = trial % 5 ? trial % 4 ? 1 : 4 : 0;
        double lambda = most * rng_uniform(&rng) / u;
        float weight[256], momentum[256];
        for (int i = 0; i < 16; i++)
            sigma[i] = w * unit * (i % 4 == 0 ? 1 : i % 4 == 1 ? 1e-3 : rng_uniform(&rng));
        with_singular_values(weight, rows, cols, sigma, &rng);
        randomize(momentum, 256, between(1e-8, 1e3, &rng), &rng);
        for (int i = 0; i < rows * cols && trial % 3; i++)
            momentum[i] = trial % 3 == 1 ? -weight[i] : weight[i];
        c.weight_decay = lambda;
        update_matrix(&c, weight, momentum, rows, cols, u, w, 0);
        double ratio = norm_by_jacobi(weight, rows, cols) / w;
        worst = worse(worst, ratio);
    }
    at_most(worst, 1 + 1e-6, "norm / cap after a step");
}

static int falling(const void *a, const void *b) {
    return (*(const double *)a < *(const double *)b) - (*(const double *)a > *(const double *)b);
}

// Every constraint on matrices of known singular values, at a cap of 1: what it makes of them, and
// that those which promise it leave none above the cap. The second matrix is far out, the third has
// zeros and equal values, the fourth needs no cap.
static void test_constraints(void) {
    static const double values[][6] = {{1.2, 1.05, 0.9, 0.5, 0.1, 0.01},
                                       {9, 3, 0.7, 0.2, 0.02, 0.01}, {1.3, 1.3, 1, 0.5, 0, 0},
                                       {0.9, 0.7, 0.5, 0.2, 0.1, 0.01}};
    Scratch s = scratch_create(6 * 11, 6);
    Rng rng = {51};
    for (int trial = 0; trial < 96; trial++) {
        const double *sigma = values[trial % 4];
        int k = trial / 24 % 2 ? 6 : 11;
        Config c = {.constraint = trial / 4 % 6, .spectral_decay = 0.25};
        float before[66];
        double after[6], wanted[6], inner = 0, expected = 0;
        with_singular_values(s.x, 6, k, sigma, &rng);
        memcpy(before, s.x, sizeof before);
        constrain(&s, 6, k, &c, INFINITY, 1);
        for (int i = 0; i < 6; i++) {
            double x = sigma[i], first = i == 0;
            wanted[i] = c.constraint == HARD ? smaller(x, 1)
                        : c.constraint == NORMALIZE ? x / larger(1, sigma[0])
                        : c.constraint == STIEFEL ? x > 0
                        : c.constraint == HAMMER ? (first ? 1 : x)
                        : c.constraint == DECAY ? (first ? 0.75 * x : x) : 0;
            expected += wanted[i] * x;
        }
        for (int i = 0; i < 6 * k; i++)
            inner += (double)before[i] * (double)s.x[i]; // <X, Y>: were the singular vectors kept?
        singular_values(after, s.x, 6, k);
        if (c.constraint <= STIEFEL)
            at_most(after[0], 1 + ROUNDING, "constrain: largest singular value"); // 1e-8
        if (c.constraint == STIEFEL && trial % 4 == 1)
            continue; // 0.01 of a norm of 9.5 is beyond what orthogonalize reaches
        double slack = c.constraint == STIEFEL ? 5e-3 : 1e-3; // the upper end of a bracket at n = 6
        if (c.constraint != SOFT)
            near(inner / expected, 1, slack, "constrain: <X, constrain X>");
        qsort(wanted, 6, sizeof *wanted, falling);
        for (int i = 0; i < 6 && c.constraint != SOFT; i++)
            check(fabs(after[i] - wanted[i]) <= slack, "constrain %d, trial %d: singular value %d "
                  "is %.6g, wanted %.6g", c.constraint, trial, i, after[i], wanted[i]);
        for (int i = 1; i < 6 && c.constraint == SOFT; i++) // in order, the small ones untouched
            check(after[i] <= after[i - 1] && (sigma[i] > 0.1 || trial % 4 == 1 ||
                  fabs(after[i] - sigma[i]) <= 0.02 * sigma[i] + 1e-6),
                  "soft cap: %.6g became %.6g", sigma[i], after[i]);
    }
    double close[24], most[24];
    Scratch wide = scratch_create(24 * 24, 24);
    for (int i = 0; i < 24; i++)
        close[i] = i ? 1 + 1e-7 * pow(1.6, i) : 1e4; // where the sign of w - x is hardest to tell
    with_singular_values(wide.x, 24, 24, close, &rng);
    constrain(&wide, 24, 24, &(Config){.constraint = HARD}, INFINITY, 1);
    singular_values(most, wide.x, 24, 24);
    at_most(most[0], 1 + ROUNDING, "hard cap: values just above it");
    scratch_free(&wide);
    for (int kind = HARD; kind <= NORMALIZE; kind++) { // far below a cap: not even rounded
        float before[66];
        randomize(s.x, 66, 1e-3, &rng);
        memcpy(before, s.x, sizeof before);
        constrain(&s, 6, 11, &(Config){.constraint = kind}, INFINITY, 1e5);
        check(!memcmp(before, s.x, sizeof before), "constrain %d moves what is within", kind);
    }
    memset(s.x, 0, 66 * sizeof(float));
    for (int kind = SOFT; kind <= DECAY; kind++) {
        Config c = {.constraint = kind, .spectral_decay = 0.25};
        constrain(&s, 6, 11, &c, INFINITY, 1);
        for (int i = 0; i < 66; i++)
            check(s.x[i] == 0, "constrain %d: zero became %g", kind, (double)s.x[i]);
    }
    s.x[7] = (float)NAN;
    for (int kind = SOFT; kind <= DECAY; kind++) // ends, and check_finite has something to find
        if (kind != STIEFEL && kind != HARD) {
            Config c = {.constraint = kind};
            constrain(&s, 6, 11, &c, INFINITY, 1);
            check(isnan(s.x[7]), "constrain %d hides a NaN", kind);
        }
    scratch_free(&s);
}

// Two steps of AdamW against its equations, in double; no caps.
static void test_adamw(void) {
    Config c = tiny(TIGHT);
    c.optimizer = ADAMW, c.beta2 = 0.95, c.weight_decay = 0.1;
    c.cap_qk = c.cap_v = c.cap_o = c.cap_in = c.cap_out = c.cap_head = c.cap_embed = c.cap_bias = 0;
    Model *m = random_model(&c, 72);
    float *g = floats(m->size);
    double *w = doubles(m->size), *mean = doubles(m->size), *square_mean = doubles(m->size);
    double error = 0, eta = 0.01;
    Rng rng = {73};
    memset(m->momentum, 0, m->size * sizeof(float));
    for (size_t i = 0; i < m->size; i++)
        w[i] = (double)m->weights[i];
    for (int step = 0; step < 2; step++) {
        randomize(g, m->size, 1e-3, &rng);
        optimizer_step(m, g, eta);
        for (size_t i = 0; i < m->size; i++) {
            mean[i] = 0.9 * mean[i] + 0.1 * (double)g[i];
            square_mean[i] = 0.95 * square_mean[i] + 0.05 * square((double)g[i]);
            w[i] = (1 - 0.1 * eta) * w[i] - eta * mean[i] / (sqrt(square_mean[i]) + 1e-8);
            error = worse(error, fabs((double)m->weights[i] - w[i]));
        }
    }
    at_most(error, 20 * epsilon, "two steps of AdamW"); // 2 eps
    free(g), free(w), free(mean), free(square_mean), model_free(m);
}

static Config capped(int variant) {
    Config c = tiny(variant);
    c.cap_qk = 0.6, c.cap_v = 0.9, c.cap_o = 1, c.cap_in = 1.5, c.cap_out = 1.5, c.cap_head = 4;
    c.cap_embed = 0.8, c.cap_bias = 0.25;
    return c;
}

// model_init: parts of q, k, v, in at norm min(1, cap), rows of E at min(1, cap), the rest zero.
static void test_init(void) {
    for (int variant = PAPER; variant <= TIGHT; variant++) {
        Config c = capped(variant);
        c.width = 64, c.heads = 4; // one pass of orthogonalize alone would not do
        Model *m = model_create(&c);
        Rng rng = {60};
        model_init(m, &rng);
        for (int i = 0; i < m->count; i++) {
            Tensor *t = &m->tensors[i];
            double wanted = t->cap > 0 ? smaller(1, t->cap) : 1, sigma[64];
            double unit = sqrt((double)(t->rows / t->parts) / t->cols);
            bool matrix = t->kind == QUERY || t->kind == KEY || t->kind == VALUE || t->kind == IN;
            float *w = m->weights + t->offset;
            for (int j = 0; j < (int)t->size && !matrix && t->kind != EMBED; j++) {
                int h = j / t->cols, distance = j % t->cols; // head h of block l looks h 4^l back
                bool first = t->kind == POSITION && distance == h * pow(4, t->block);
                double start = first ? POSITION_START : 0;
                check((double)w[j] == start, "init: %s is %g", t->name, (double)w[j]);
            }
            for (int r = 0; r < t->rows && t->kind == EMBED; r++)
                near(rms(w + r * t->cols, t->cols), wanted, 1e-6, "init: row of E"); // 4e-8
            for (int p = 0, rows = t->rows / t->parts; p < t->parts && matrix; p++) {
                int n = singular_values(sigma, w + p * rows * t->cols, rows, t->cols);
                near(sigma[0] / unit, wanted, 0.005, "init: largest singular value");      // 0.0044
                near(sigma[n - 1] / unit, wanted, 0.005, "init: smallest singular value"); // 0.0044
                at_most(sigma[0] / unit, wanted, "init: within the cap");
            }
        }
        model_free(m);
    }
}

// check_matrix_step: each part moved by u in RMS->RMS norm (orthogonalize leaves 0.9955 .. 0.9994
// of it), down the momentum.
static void check_matrix_step(const Tensor *t, const float *moved, const float *momentum,
                              double u) {
    int rows = t->rows / t->parts;
    size_t size = (size_t)rows * t->cols;
    for (int p = 0; p < t->parts; p++) {
        const float *part = moved + t->offset + (size_t)p * size;
        double norm = norm_by_jacobi(part, rows, t->cols), descent = 0;
        check(norm >= 0.9955 * u && norm <= 0.9994 * u, "%s, part %d: update of norm %g, wanted %g",
              t->name, p, norm, u);
        for (size_t j = 0; j < size; j++)
            descent += (double)part[j] * (double)momentum[t->offset + (size_t)p * size + j];
        check(descent > 0, "%s, part %d: the update climbs", t->name, p);
    }
}

// rows_error: against w - u m / max(1/16, |m|) for E and w - u sign(m) for biases, then scaled back
// onto the cap.
static double rows_error(const Tensor *t, const float *old, const float *now, const float *momentum,
                         double u, double cap) {
    double error = 0;
    for (int r = 0; r < t->rows; r++) {
        size_t at = t->offset + (size_t)r * t->cols;
        double wanted[64], sum = 0, step = u / larger(1.0 / 16, rms(momentum + at, t->cols));
        for (int j = 0; j < t->cols; j++) {
            double m = (double)momentum[at + (size_t)j];
            wanted[j] = (double)old[at + (size_t)j];
            wanted[j] -= t->kind == EMBED ? step * m : copysign(u, m);
            sum += square(wanted[j]) / t->cols;
        }
        for (int j = 0; j < t->cols; j++) {
            double back = cap > 0 && sqrt(sum) > cap ? cap / sqrt(sum) : 1;
            error = worse(error, fabs((double)now[at + (size_t)j] - back * wanted[j]));
        }
        if (cap > 0)
            at_most(rms(now + at, t->cols), cap * (1 + 2 * epsilon), "rows within their cap");
    }
    return error;
}

// One optimizer step by hand: momentum, rows with floor and cap, matrices part by part; then, with
// no gradient at all, weight decay alone.
static void test_optimizer_step(void) {
    for (int variant = PAPER; variant <= TIGHT; variant++) {
        Config c = capped(variant);
        c.cap_qk = c.cap_v = c.cap_o = c.cap_in = c.cap_out = c.cap_head = 100; // far away
        Model *m = random_model(&c, 70);
        size_t n = m->size;
        float *old = floats(n), *g = floats(n), *moved = floats(n), *mean = floats(n);
        double eta = 0.02, body = 32.0 / 34, end = 1.0 / 34, error = 0;
        const double shares[KINDS] = {
            [EMBED] = end * c.share_embed, [QUERY] = body, [KEY] = body, [VALUE] = body,
            [POSITION] = 0.1, [OUTPUT] = body / 3, [IN] = body / 3, [IN_BIAS] = 0.1,
            [OUT] = body / 3, [HEAD] = end * c.share_head, [HEAD_BIAS] = 0.1};
        const double caps[KINDS] = {[EMBED] = 0.8, [IN_BIAS] = 0.25};
        Rng rng = {71};
        randomize(g, n, 1, &rng);
        randomize(m->momentum, n, 1, &rng);
        for (int j = 0; j < 5 * D; j++) // the first rows of E: gradients far below the floor
            g[j] *= 1e-3f, m->momentum[j] *= 1e-3f;
        for (size_t j = 0; j < n; j++) {
            old[j] = m->weights[j];
            mean[j] = (float)(0.9 * (double)m->momentum[j] + 0.1 * (double)g[j]);
        }
        optimizer_step(m, g, eta);
        for (size_t j = 0; j < n; j++) {
            moved[j] = old[j] - m->weights[j];
            error = worse(error, fabs((double)(m->momentum[j] - mean[j])));
        }
        at_most(error, 10 * epsilon, "momentum = 0.9 momentum + 0.1 gradient"); // 4 eps
        for (int i = 0; i < m->count; i++) {
            Tensor *t = &m->tensors[i];
            bool sliced = t->kind == QUERY || t->kind == KEY || t->kind == VALUE;
            check(t->parts == (c.per_head && sliced ? H : 1), "%s: %d parts", t->name, t->parts);
            if (is_matrix(t->kind))
                check_matrix_step(t, moved, m->momentum, eta * shares[t->kind]);
            else
                at_most(rows_error(t, old, m->weights, m->momentum, eta * shares[t->kind],
                                   caps[t->kind]), 20 * epsilon, "step of rows"); // 4 eps
        }
        memset(g, 0, n * sizeof(float)), memset(m->momentum, 0, n * sizeof(float));
        memcpy(old, m->weights, n * sizeof(float));
        m->config.weight_decay = 3;
        optimizer_step(m, g, eta);
        for (int i = 0; i < m->count; i++) {
            Tensor *t = &m->tensors[i];
            double factor = is_matrix(t->kind) ? 1 - 3 * eta * shares[t->kind] : 1;
            double lost = 0, size = 0;
            for (size_t j = t->offset; j < t->offset + t->size; j++) {
                lost += square((double)m->weights[j] - factor * (double)old[j]);
                size += square((double)old[j]);
            }
            if (t->size)
                at_most(sqrt(lost / size), 1e-6, "weight decay: W (1 - lambda u)"); // 9e-8
        }
        free(old), free(g), free(moved), free(mean);
        model_free(m);
    }
}

// ------------------------------------------------------------------------------------------------
// The certificate

// The paper's bound of its own network at uniform norms, against its published formula's values.
static void test_paper_bound(void) {
    static const double known[][2] = {{1, 0.876}, {1.2, 1.95}, {1.4, 5.69}, {2, 840}};
    Config c = tiny(PAPER);
    c.blocks = 3, c.residual = 1.0 / 6;
    Model *m = model_create(&c);
    Norms norms = norms_create(m);
    Certificate out = certificate_create(m);
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < m->count * norms.slots; j++)
            norms.of[j].upper = j < norms.slots ? 1 : known[i][0];
        compose(m, &norms, 1, &out);
        near(pow(10, out.log10_paper), known[i][1], 0.01, "paper's bound");
    }
    free(norms.of), free(out.layers), model_free(m);
}

// The sound bound at random norms, per head, against dev/certificate.md evaluated here.
static void test_sound_bound(void) {
    Rng rng = {80};
    for (int variant = 0; variant < VARIANTS; variant++) {
        Config c = tiny(variant);
        Model *m = model_create(&c);
        Norms n = norms_create(m);
        Certificate out = certificate_create(m);
        for (int i = 0; i < m->count * n.slots; i++)
            n.of[i].upper = between(0.5, 2, &rng);
        double a = 0.9, K = 1, R0 = a, alpha = variant == PLAIN ? 1 : c.residual;
        double keep = variant == PLAIN ? 1 : 1 - alpha, factor = c.attention_factor;
        bool gelu = variant == PAPER || variant == PLAIN;
        compose(m, &n, R0, &out);
        for (int l = 0; l < c.blocks; l++) {
            double F2 = 0, v2 = 0, o = norm_of(m, &n, OUTPUT, l, 0)->upper;
            for (int h = 1; h <= H; h++) {
                double v = norm_of(m, &n, VALUE, l, h)->upper;
                double b = c.softmax_scale * norm_of(m, &n, QUERY, l, h)->upper *
                           norm_of(m, &n, KEY, l, h)->upper * a * a;
                F2 += v * v * (1 + 2 * b) * (1 + 2 * b), v2 += v * v;
            }
            K = K * keep + alpha * K * factor * o * sqrt(F2 / H);
            a = a * keep + alpha * a * factor * o * sqrt(v2 / H);
            near(out.layers[2 * l].activation, a, 1e-12, "compose: activations after attention");
            near(pow(10, out.layers[2 * l].log10_sound), K, 1e-12, "compose: K after attention");
            double in = norm_of(m, &n, IN, l, 0)->upper, w = norm_of(m, &n, OUT, l, 0)->upper;
            double b_in = c.bias ? norm_of(m, &n, IN_BIAS, l, 0)->upper : 0;
            K = K * keep + alpha * K * w * in * (gelu ? 1.1289931 / 1.1289 : 1);
            a = a * keep + alpha * w * (in * a + b_in) / (gelu ? 1.1289 : 1);
            near(out.layers[2 * l + 1].activation, a, 1e-12, "compose: activations after the MLP");
            near(pow(10, out.layers[2 * l + 1].log10_sound), K, 1e-12, "compose: K after the MLP");
        }
        near(pow(10, out.log10_trunk), K, 1e-11, "compose: K of the trunk");
        check(out.log10_trunk >= log10(K), "compose: the trunk is rounded down");
        K *= norm_of(m, &n, HEAD, 0, 0)->upper;
        near(pow(10, out.log10_sound), K, 1e-11, "compose: K of all");
        free(n.of), free(out.layers), model_free(m);
    }
}

// norms_measure: every matrix and every head's slice against Jacobi, rows against rms.
static void test_norms(void) {
    Config c = tiny(TIGHT);
    Model *m = random_model(&c, 85);
    Norms n = norms_create(m);
    norms_measure(m, &n);
    for (int i = 0; i < m->count; i++) {
        Tensor *t = &m->tensors[i];
        bool sliced = t->kind == QUERY || t->kind == KEY || t->kind == VALUE;
        for (int slot = 0; slot <= (sliced ? H : 0); slot++) {
            int rows = slot ? t->rows / H : t->rows, first = slot ? (slot - 1) * rows : 0;
            const float *w = m->weights + t->offset + (size_t)first * t->cols;
            Bracket *b = norm_of(m, &n, t->kind, t->block, slot);
            double norm = 0;
            for (int r = 0; r < rows; r++)
                norm = worse(norm, rms(w + (size_t)r * t->cols, t->cols));
            norm = is_matrix(t->kind) ? norm_by_jacobi(w, rows, t->cols) : norm;
            check(b->lower <= norm && norm <= b->upper && b->upper <= 1.005 * b->lower,
                  "%s, slot %d: %.12g <= %.12g <= %.12g", t->name, slot, b->lower, norm, b->upper);
        }
    }
    free(n.of), model_free(m);
}

// bracket: lower <= sigma <= upper, and less than 0.5 % between them.
static void check_bracket(const float *w, int rows, int cols, double sigma, double slack) {
    Bracket b = spectral_norm(w, rows, cols, NULL);
    check(b.lower <= sigma * (1 + slack) && sigma <= b.upper * (1 + slack) && b.upper < INFINITY &&
              b.upper - b.lower <= 0.005 * b.upper,
          "spectral_norm (%d, %d): %.15g <= %.15g <= %.15g", rows, cols, b.lower, sigma, b.upper);
}

// spectral_norm against Jacobi: shapes, condition numbers, scales, rank one, zero, NaN.
static void test_spectral_norm(void) {
    static const int shapes[][2] = {{1, 1}, {1, 7}, {9, 1}, {2, 2}, {3, 5}, {8, 8}, {13, 4},
                                    {16, 31}, {33, 33}, {24, 100}, {65, 40}, {128, 96}, {150, 150}};
    static const double conditions[] = {1, 1.01, 100, 1e4, 1e8}, scales[] = {1, 1e-30, 1e30};
    float *w = floats(512 * 512);
    double sigma[512];
    Rng rng = {90};
    for (int i = 0; i < (THIN > 1 ? 11 : 13); i++)
        for (int k = 0; k < 15; k++) {
            int rows = shapes[i][0], cols = shapes[i][1], n = rows < cols ? rows : cols;
            if (n > 64 && k % 5 != 0)
                continue;
            for (int j = 0; j < n; j++)
                sigma[j] = scales[k / 5] * pow(conditions[k % 5], -(double)j / (n > 1 ? n - 1 : 1));
            with_singular_values(w, rows, cols, sigma, &rng);
            singular_values(sigma, w, rows, cols);
            check_bracket(w, rows, cols, sigma[0], 0);
            randomize(w, (size_t)rows * cols, scales[k / 5], &rng);
            singular_values(sigma, w, rows, cols);
            check_bracket(w, rows, cols, sigma[0], 0);
        }
    for (int i = 0; i < 512; i++)
        sigma[i] = i < 40 ? 3 : 1e-3 * (512 - i); // a cluster at the top
    with_singular_values(w, 512, THIN > 1 ? 64 : 512, sigma, &rng);
    check_bracket(w, 512, THIN > 1 ? 64 : 512, 3, 2 * epsilon); // rounding W to float moves sigma
    double rank_one[64] = {0.25};
    with_singular_values(w, 64, 80, rank_one, &rng);
    check_bracket(w, 64, 80, 0.25, 2 * epsilon);
    w[77] = (float)NAN;
    check(spectral_norm(w, 64, 80, NULL).upper == INFINITY, "spectral_norm: NaN");
    w[77] = -(float)INFINITY;
    check(spectral_norm(w, 64, 80, NULL).upper == INFINITY, "spectral_norm: infinity");
    memset(w, 0, 512 * sizeof(float));
    Bracket zero = spectral_norm(w, 16, 32, NULL);
    check(zero.lower == 0 && zero.upper == 0, "spectral_norm of zero: %g", zero.upper);
    free(w);
}

// ------------------------------------------------------------------------------------------------
// Training

// batch_of: batch_gradient with its parts given one by one.
static double batch_of(Model *m, Workspace *spaces, Data *data, const size_t *starts,
                       float *lanes) {
    int count = m->config.lanes < m->config.batch ? m->config.lanes : m->config.batch;
    Run r = {.m = m, .data = *data, .spaces = spaces, .lanes = lanes, .lane_count = count};
    return batch_gradient(&r, starts);
}

// overfit: the mean loss of four fixed windows after some hundred steps, all caps off.
static double overfit(int variant, int steps, double eta) {
    enum { WINDOW = CONTEXT + 1 };
    Config c = tiny(variant);
    c.batch = 4, c.lanes = 2, c.share_embed = 20, c.share_head = 20;
    Model *m = model_create(&c);
    int threads = omp_get_max_threads();
    Workspace *spaces = workspaces_create(&c, threads);
    float *lanes = floats(2 * m->size);
    uint16_t text[4 * WINDOW];
    Rng rng = {100};
    for (int i = 0; i < 4 * WINDOW; i++) // windows begin with different tokens, then anything
        text[i] = i % WINDOW ? (uint16_t)rng_below(&rng, 11) : (uint16_t)(i / WINDOW);
    Data data = {.tokens = text, .count = 4 * WINDOW, .train = 4 * WINDOW, .vocabulary = 11};
    size_t starts[] = {0, WINDOW, 2 * WINDOW, 3 * WINDOW};
    model_init(m, &rng);
    for (int step = 0; step < steps; step++) {
        double loss = batch_of(m, spaces, &data, starts, lanes);
        if (step == 0)
            near(loss, log(11), 1e-6, "loss before training is log V");
        optimizer_step(m, lanes, eta * (1 - (double)step / steps));
    }
    double loss = batch_of(m, spaces, &data, starts, lanes);
    free(lanes), workspaces_free(spaces, threads), model_free(m);
    return loss;
}

static void test_overfit(void) {
    at_most(overfit(PAPER, 400, 0.06), 0.1, "loss after overfitting, paper's options");
    at_most(overfit(TIGHT, 400, 0.06), 0.1, "loss after overfitting, tight options");
}

// The same bits of loss and gradient for 1, 2 and 3 threads; the sum over lanes is the gradient.
static void test_determinism(void) {
    Config c = tiny(TIGHT);
    Model *m = random_model(&c, 110);
    Workspace *spaces = workspaces_create(&c, 3), *one = workspaces_create(&c, 1);
    uint16_t text[100];
    size_t starts[] = {0, 17, 80, 33, 5, 61};
    float *lanes = floats(4 * m->size), *first = floats(m->size), *sum = floats(m->size);
    double loss = 0, serial = 0, error = 0, size = 0;
    Rng rng = {111};
    for (int i = 0; i < 100; i++)
        text[i] = (uint16_t)rng_below(&rng, 11);
    Data data = {.tokens = text, .count = 100, .train = 100, .vocabulary = 11};
    for (int threads = 1; threads <= 3; threads++) {
#ifdef _OPENMP
        int usual = omp_get_max_threads();
        omp_set_num_threads(threads);
#endif
        double again = batch_of(m, spaces, &data, starts, lanes);
#ifdef _OPENMP
        omp_set_num_threads(usual);
#endif
        if (threads == 1)
            memcpy(first, lanes, m->size * sizeof(float)), loss = again;
        check(again == loss && !memcmp(first, lanes, m->size * sizeof(float)),
              "batch_gradient differs with %d threads", threads);
    }
    for (int i = 0, correct = 0; i < 6; i++)
        serial += sequence_loss(m, one, text + starts[i], text + starts[i] + 1, CONTEXT, sum,
                                6 * CONTEXT, &correct);
    for (size_t i = 0; i < m->size; i++)
        error += square((double)(sum[i] - first[i])), size += square((double)sum[i]);
    near(loss, serial / (6 * CONTEXT), 1e-14, "batch loss: mean over windows");
    at_most(sqrt(error / size), 4 * epsilon, "batch gradient: sum over windows");
    free(lanes), free(first), free(sum);
    workspaces_free(spaces, 3), workspaces_free(one, 1), model_free(m);
}

// ---- The certificate: a theorem and its code, attacked. K is always pow(10, log10_sound).
#if defined __SANITIZE_ADDRESS__
enum { MODELS = 60 };
#elif defined __has_feature
#if __has_feature(address_sanitizer)
enum { MODELS = 60 };
#else
enum { MODELS = 240 };
#endif
#else
enum { MODELS = 240 };
#endif
#ifdef CERTIFICATE_REPORT // measured ratios, for dev/certificate.md
#define REPORT(...) printf(__VA_ARGS__)
#else
#define REPORT(...) ((void)0)
#endif

// lab: a model with its workspace and certificate.
typedef struct { Model *m; Workspace *s; Norms norms; Certificate certificate; } Lab;

static Config small_config(int d, int H, int L, int V) {
    return (Config){.width = d, .heads = H, .blocks = L, .context = 8, .mlp_ratio = 1,
                    .vocabulary = V, .activation = ABS, .residual = 0.5, .attention_factor = 1,
                    .softmax_scale = 1, .batch = 1, .lanes = 1, .beta = 0.9, .mass = 32,
                    .share_embed = 1, .share_head = 1, .share_bias = 0.1};
}

static Lab lab_create(const Config *c) {
    Lab lab = {.m = model_create(c), .s = workspaces_create(c, 1)};
    lab.norms = norms_create(lab.m), lab.certificate = certificate_create(lab.m);
    return lab;
}

static void lab_free(Lab *lab) {
    workspaces_free(lab->s, 1), free(lab->norms.of), free(lab->certificate.layers);
    model_free(lab->m);
}

static double sound(Lab *lab) { // K of the weights as they are
    certify(lab->m, &lab->norms, &lab->certificate);
    return pow(10, lab->certificate.log10_sound);
}

static float *weight(const Lab *lab, Kind kind, int block) {
    return values(lab->m, lab->m->weights, kind, block);
}

static double norm_now(const float *w, int rows, int cols) { // RMS->RMS, from below
    return spectral_norm(w, rows, cols, NULL).lower * sqrt((double)cols / rows);
}

static void set_norm(float *w, int rows, int cols, double norm) {
    double now = norm_now(w, rows, cols);
    for (int i = 0; i < rows * cols && now > 0; i++)
        w[i] = (float)((double)w[i] * (norm / now));
}

typedef enum { GAUSSIAN, ORTHOGONAL, RANK_ONE, ONE_HEAD, OPTIMISED, FAMILIES } Family;
static const char *const family_names[] = {"gaussian", "orthogonal", "rank one", "one head",
                                           "optimised"};

static void fill_matrix(float *w, int rows, int cols, Family family, double norm, Rng *rng) {
    int n = rows < cols ? rows : cols, k = rows < cols ? cols : rows;
    double *q = doubles((size_t)n * k); // the wide one of W and its transpose
    for (int i = 0; i < n; i++) {
        double *row = q + (size_t)i * k, sum = 0, scale = rng_normal(rng);
        for (int j = 0; j < k; j++)
            row[j] = family == RANK_ONE && i ? scale * q[j] : rng_normal(rng);
        for (int p = 0; p < i && family == ORTHOGONAL; p++) { // Gram-Schmidt
            double dot = 0;
            for (int j = 0; j < k; j++)
                dot += row[j] * q[(size_t)p * k + j];
            for (int j = 0; j < k; j++)
                row[j] -= dot * q[(size_t)p * k + j];
        }
        for (int j = 0; j < k; j++)
            sum += row[j] * row[j];
        for (int j = 0; j < k && family == ORTHOGONAL; j++)
            row[j] /= sqrt(sum);
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            w[(size_t)i * cols + j] =
                (float)q[rows <= cols ? (size_t)i * cols + j : (size_t)j * rows + i];
    free(q);
    set_norm(w, rows, cols, norm);
}

static void fill_rows(float *w, int rows, int cols, double norm, Rng *rng) {
    for (int r = 0; r < rows; r++, w += cols) {
        for (int j = 0; j < cols; j++)
            w[j] = (float)rng_normal(rng);
        double scale = norm / rms(w, cols);
        for (int j = 0; j < cols; j++)
            w[j] = (float)(scale * (double)w[j]);
    }
}

// fill_model: every weight of a family with a norm from low to high; ONE_HEAD: q, k, v live in head
// 0.
static void fill_model(Lab *lab, Family family, double low, double high, Rng *rng) {
    for (int i = 0; i < lab->m->count; i++) {
        Tensor *t = &lab->m->tensors[i];
        float *w = lab->m->weights + t->offset;
        double norm = low * pow(high / low, rng_uniform(rng));
        bool split = t->kind == QUERY || t->kind == KEY || t->kind == VALUE;
        if (!t->size)
            continue;
        if (!is_matrix(t->kind))
            fill_rows(w, t->rows, t->cols, norm, rng);
        else if (family == ONE_HEAD && split) {
            int H = lab->m->config.heads;
            memset(w, 0, t->size * sizeof *w);
            fill_matrix(w, t->rows / H, t->cols, ORTHOGONAL, norm * sqrt(H), rng);
        } else
            fill_matrix(w, t->rows, t->cols, family == ONE_HEAD ? ORTHOGONAL : family, norm, rng);
    }
}

// pair_ratio: |f(x) - f(y)| / |x - y| less what rounding may have added; difference (T, V) on
// request.
static double pair_ratio(const Lab *lab, const float *x, const float *y, int T, float *difference,
                         int *where) {
    const Config *c = &lab->m->config;
    size_t n = (size_t)T * c->width, N = (size_t)T * c->vocabulary;
    float *fy = floats(N), *shift = floats(n);
    run(lab->m, lab->s, y, T);
    memcpy(fy, lab->s->logits, N * sizeof *fy);
    run(lab->m, lab->s, x, T);
    double size = largest_row(fy, T, c->vocabulary, NULL);
    for (size_t i = 0; i < N; i++)
        fy[i] -= lab->s->logits[i];
    for (size_t i = 0; i < n; i++)
        shift[i] = y[i] - x[i];
    double response = largest_row(fy, T, c->vocabulary, where);
    double distance = largest_row(shift, T, c->width, NULL);
    double rounding = sizeof(float) == 4 ? 4e-7 * (4 * c->blocks + 2) : 1e-15 * (4 * c->blocks + 2);
    if (difference)
        memcpy(difference, fy, N * sizeof *fy);
    free(fy), free(shift);
    return distance > 0 ? (response - rounding * size) / distance : 0;
}

// pull: dx = sign J^T u at point x, u (V) at token t; the same for the weights, added to g.
static void pull(const Lab *lab, const float *x, const float *u, double sign, int t, int T,
                 float *g) {
    size_t V = (size_t)lab->m->config.vocabulary;
    run(lab->m, lab->s, x, T);
    memset(lab->s->logits, 0, (size_t)T * V * sizeof(float));
    for (size_t v = 0; v < V; v++)
        lab->s->logits[(size_t)t * V + v] = (float)sign * u[v];
    backward(lab->m, lab->s, g, T);
}

// climb_weights: a step of relative size `rate` along g (of q, k, v, o only when `attention`); then
// every matrix, and every row of the others, returns to the norm it had.
static void climb_weights(Lab *lab, const float *g, double rate, bool attention) {
    for (int i = 0; i < lab->m->count; i++) {
        Tensor *t = &lab->m->tensors[i];
        float *w = lab->m->weights + t->offset;
        const float *gradient = g + t->offset;
        bool asked = t->kind == QUERY || t->kind == KEY || t->kind == VALUE || t->kind == OUTPUT;
        if (!t->size || !is_matrix(t->kind) || (attention && !asked))
            continue;
        double norm = norm_now(w, t->rows, t->cols), size = rms(gradient, (int)t->size);
        double scale = size > 0 ? rate * rms(w, (int)t->size) / size : 0;
        for (size_t j = 0; j < t->size; j++)
            w[j] += (float)(scale * (double)gradient[j]);
        set_norm(w, t->rows, t->cols, norm);
    }
}

// ascend: gradient ascent on |f(x) - f(y)| / |x - y| at |x - y| = h, over x and y and, if rate > 0,
// over the weights; returns the best ratio seen and leaves its pair and weights behind.
static double ascend(Lab *lab, float *x, float *y, int T, double radius, double h, int steps,
                     double rate, bool attention) {
    int d = lab->m->config.width, V = lab->m->config.vocabulary, t = 0;
    size_t n = (size_t)T * d;
    float *du = floats((size_t)T * V), *px = floats(n), *py = floats(n), *gx = floats(n);
    float *g = floats(lab->m->size), *kept = floats(lab->m->size);
    double best = 0;
    memcpy(kept, lab->m->weights, lab->m->size * sizeof *g);
    memcpy(px, x, n * sizeof *x), memcpy(py, y, n * sizeof *y);
    for (int step = 0; step < steps; step++) {
        project(px, NULL, radius, T, d), project(py, NULL, radius, T, d);
        double ratio = pair_ratio(lab, px, py, T, du, &t);
        if (ratio > best) {
            best = ratio;
            memcpy(kept, lab->m->weights, lab->m->size * sizeof *g);
            memcpy(x, px, n * sizeof *x), memcpy(y, py, n * sizeof *y);
        }
        memset(g, 0, lab->m->size * sizeof *g);
        pull(lab, px, du + (size_t)t * V, -1, t, T, rate > 0 ? g : NULL);
        memcpy(gx, lab->s->dx, n * sizeof *gx);
        pull(lab, py, du + (size_t)t * V, 1, t, T, rate > 0 ? g : NULL);
        for (size_t i = 0; i < n; i++)
            gx[i] += lab->s->dx[i];
        if (rate > 0)
            climb_weights(lab, g, rate * (1 - (double)step / steps), attention);
        double size = largest_row(gx, T, d, NULL), pace = 0.2 * radius * (1 - (double)step / steps);
        for (size_t i = 0; i < n && size > 0; i++)
            px[i] += (float)(pace / size * (double)gx[i]);
        project(px, NULL, radius, T, d);
        memcpy(py, px, n * sizeof *px);
        add_direction(py, lab->s->dx, h, T, d);
    }
    memcpy(lab->m->weights, kept, lab->m->size * sizeof *g);
    free(du), free(px), free(py), free(gx), free(g), free(kept);
    return best;
}

static void random_tokens(float *x, int T, int d, double radius, Rng *rng) {
    fill_rows(x, T, d, radius, rng);
}

// largest_ratio: the largest |f(x) - f(y)| / |x - y| that random pairs (close, far, antipodal, on
// the sphere), worst_pair and ascend can find inside |.| <= R0.
static double largest_ratio(Lab *lab, double radius, Rng *rng) {
    const Config *c = &lab->m->config;
    int T = 6, d = c->width;
    size_t n = (size_t)T * d;
    float *x = floats(n), *y = floats(n);
    double best = 0;
    for (int kind = 0; kind < 8; kind++) {
        random_tokens(x, T, d, radius * (kind < 4 ? 1 : rng_uniform(rng)), rng);
        random_tokens(y, T, d, radius * (kind < 4 ? 1 : rng_uniform(rng)), rng);
        for (size_t i = 0; i < n && kind % 4; i++)
            y[i] = kind % 4 == 1   ? -x[i]
                   : kind % 4 == 2 ? x[i] + (float)1e-2 * y[i]
                                   : x[i] * (float)0.9;
        project(y, NULL, radius, T, d);
        best = larger(best, pair_ratio(lab, x, y, T, NULL, NULL));
    }
    for (int restart = 0; restart < 2; restart++) {
        random_tokens(x, T, d, radius, rng);
        best = larger(best, worst_pair(lab->m, lab->s, x, y, radius, T, 20, rng));
        best = larger(best, pair_ratio(lab, x, y, T, NULL, NULL));
        best = larger(best, ascend(lab, x, y, T, radius, 0.003 * radius, 20, 0, false));
    }
    free(x), free(y);
    return best;
}

// random_config: every switch and constant of the network, drawn.
static Config random_config(int index, Rng *rng) {
    static const double scales[] = {0.5, 1, 24};
    Config c = small_config(16, 1 << index / FAMILIES % 4, 1 + index / FAMILIES / 4 % 3, 10);
    c.mlp_ratio = 1 + (int)rng_below(rng, 2), c.activation = (int)rng_below(rng, 3);
    c.softmax_scale = scales[rng_below(rng, 3)];
    c.position_bias = (int)rng_below(rng, 2), c.bias = (int)rng_below(rng, 2);
    c.per_head = (int)rng_below(rng, 2), c.plain_residual = (int)rng_below(rng, 2);
    c.attention_factor = rng_below(rng, 2) ? 1.0 / 3 : 1;
    c.residual = rng_below(rng, 2) ? 0.5 : rng_below(rng, 2) ? 0.5 / c.blocks : 0.9;
    return c;
}

// No pair of inputs of any model moves the logits by more than K |x - y|.
static void test_certificate_from_below(void) {
    double closest[FAMILIES] = {0};
    for (int i = 0; i < MODELS; i++) {
        Family family = (Family)(i % FAMILIES);
        Rng rng = {(uint64_t)i + 1000};
        Config c = random_config(i, &rng);
        Lab lab = lab_create(&c);
        fill_model(&lab, family == OPTIMISED ? (Family)(i / 60) : family, 0.5, 4, &rng);
        if (family == OPTIMISED) {
            float *x = floats(6 * 16), *y = floats(6 * 16);
            sound(&lab);
            double R = lab.certificate.radius;
            random_tokens(x, 6, 16, R, &rng), random_tokens(y, 6, 16, R, &rng);
            ascend(&lab, x, y, 6, R, 0.01 * R, 120, 0.2, false);
            free(x), free(y);
        }
        double K = sound(&lab), ratio = largest_ratio(&lab, lab.certificate.radius / (1 + 1e-6),
                                                      &rng);
        closest[family] = larger(closest[family], ratio / K);
        check(ratio > 0 && ratio <= K, "model %d (%s, H %d, L %d): a pair reaches %.6g, K = %.6g",
              i, family_names[family], c.heads, c.blocks, ratio, K);
        lab_free(&lab);
    }
    for (int f = 0; f < FAMILIES; f++)
        REPORT("from below, %s: %.3f of K\n", family_names[f], closest[f]);
}

// attention_only: f(x) = W_o concat_h(A_h v_h) + a constant: no residual, a head of W = 1, and an
// MLP that is x + b wherever |x_i| < b, as |x + b| = x + b. So compose() returns |W_o| sqrt(mean
// F_h^2).
static Lab attention_only(int d, int H, double s) {
    Config c = small_config(d, H, 1, d);
    c.residual = 1, c.bias = 1, c.position_bias = 1, c.softmax_scale = s;
    Lab lab = lab_create(&c);
    for (int i = 0; i < d; i++) {
        size_t diagonal = (size_t)i * (d + 1);
        weight(&lab, IN, 0)[diagonal] = weight(&lab, OUT, 0)[diagonal] = 1;
        weight(&lab, HEAD, 0)[diagonal] = weight(&lab, OUTPUT, 0)[diagonal] = 1;
        weight(&lab, IN_BIAS, 0)[i] = 256;
        weight(&lab, EMBED, 0)[i] = 1; // R0 = 1
    }
    for (int h = 0; h < H; h++)
        weight(&lab, POSITION, 0)[(size_t)h * c.context] = -1000; // nobody looks at itself
    return lab;
}

// worst_head: the weights and the pair that make (4) tight in the heads of `used`, in a plane f0,
// f1 that q and k share: token 2 asks with q = f0; keys k_0 = f1 = -k_1 and values v_0 = -v_1 tie,
// each with weight 1/2. dq = f1, dk_0 = f0 = -dk_1 then move both scores by all of 2 beta, in
// opposite directions. The plane is the slowest pair of rope, which turns it by phi a token: the
// query is turned so that both keys still tie.
static void worst_head(Lab *lab, int used, double norm, float *x, float *y, double h) {
    int d = lab->m->config.width, dh = d / lab->m->config.heads, low = dh / 2 - 1, high = dh - 1;
    double entry = norm / sqrt(used), one = sqrt(d), phi = pow(10000, -(double)low / (dh / 2));
    for (int head = 0; head < used; head++) { // the same slice in each: |W| = norm
        size_t row = (size_t)head * dh;
        weight(lab, QUERY, 0)[(row + low) * d] = weight(lab, KEY, 0)[(row + low) * d] =
            (float)entry;
        weight(lab, QUERY, 0)[(row + high) * d + 1] = weight(lab, KEY, 0)[(row + high) * d + 1] =
            (float)entry;
        weight(lab, VALUE, 0)[row * d + 1] = (float)entry;
    }
    for (int i = 0; i < d; i++)
        weight(lab, OUTPUT, 0)[(size_t)i * (d + 1)] = (float)norm;
    memset(x, 0, 3 * (size_t)d * sizeof *x);
    double c = one * cos(h / 2), s = one * sin(h / 2); // x and y stay on the sphere, h apart
    double qx = -1.5 * phi - h / 2, qy = -1.5 * phi + h / 2;
    const double from[3][2] = {{-s, c}, {s, -c}, {one * cos(qx), one * sin(qx)}};
    const double to[3][2] = {{s, c}, {-s, -c}, {one * cos(qy), one * sin(qy)}};
    memcpy(y, x, 3 * (size_t)d * sizeof *x);
    for (int t = 0; t < 3; t++)
        for (int i = 0; i < 2; i++)
            x[t * d + i] = (float)from[t][i], y[t * d + i] = (float)to[t][i];
}

// The constant of one attention layer is reached: no factor in (3), (4), (5) can be dropped.
static void test_attention_is_tight(void) {
    static const struct { int d, H, used; double s, least; } cases[] = {
        {16, 1, 1, 24, 0.97}, {32, 2, 2, 24, 0.97}, {32, 2, 1, 24, 0.97}, {64, 4, 1, 24, 0.97},
        {64, 4, 4, 6, 0.9},   {64, 8, 3, 24, 0.95}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Lab lab = attention_only(cases[i].d, cases[i].H, cases[i].s);
        float *x = floats(3 * (size_t)cases[i].d), *y = floats(3 * (size_t)cases[i].d);
        double slice = sqrt((double)cases[i].H / cases[i].used), beta = cases[i].s * slice * slice;
        double h = sizeof(float) == 4 ? 0.1 / beta : 0.01 / beta;
        worst_head(&lab, cases[i].used, 1, x, y, h);
        double built = pair_ratio(&lab, x, y, 3, NULL, NULL), K = sound(&lab);
        double wanted = slice * (1 + 2 * beta) * sqrt((double)cases[i].used / cases[i].H);
        near(K, wanted, 2e-3, "|W_o| sqrt(mean F_h^2)"); // 2e-3: the bracket's width, four times
        double climbed = ascend(&lab, x, y, 3, 1 / (1 + 1e-6), h, 60, 0.01, true) / sound(&lab);
        REPORT("attention d %d H %d in %d heads, s %g: built %.4f, climbed %.4f of K = %.5g\n",
               cases[i].d, cases[i].H, cases[i].used, cases[i].s, built / K, climbed, K);
        check(built <= wanted * (1 + 1e-9) && built >= cases[i].least * wanted,
              "attention of %d heads reaches %.4f of its constant", cases[i].H, built / wanted);
        check(climbed <= 1, "attention of %d heads reaches %.6f of its constant", cases[i].H,
              climbed);
        free(x), free(y), lab_free(&lab);
    }
}

// The point of the project: with several heads the paper's accounting is no bound.
static void test_paper_bound_is_exceeded(void) {
    for (int norm = 1; norm <= 2; norm++) {
        Lab lab = attention_only(16, 4, 1);
        float *x = floats(3 * 16), *y = floats(3 * 16);
        double h = sizeof(float) == 4 ? 1e-2 : 1e-4, paper = norm * norm * (1 + 2.0 * norm * norm);
        worst_head(&lab, 1, norm, x, y, h);
        double built = pair_ratio(&lab, x, y, 3, NULL, NULL), K = sound(&lab);
        check(built > (norm == 1 ? 2.6 : 3.4) * paper && built <= K,
              "norms %d: a pair reaches %.4f, the paper's bound is %.4f, K = %.4f", norm, built,
                  paper, K);
        for (Kind kind = QUERY; kind <= OUTPUT; kind++)
            if (kind != POSITION)
                near(norm_of(lab.m, &lab.norms, kind, 0, 0)->upper, norm, 5e-4,
                     "|W| of the whole matrix");
        double climbed = ascend(&lab, x, y, 3, 1 / (1 + 1e-6), h, 300, 0.01, true);
        double at = sound(&lab);
        check(climbed <= at, "norms %d: a pair reaches %.4f, K = %.4f", norm, climbed, at);
        REPORT("H 4, d 16, norms %d: built %.4f of K %.4f, climbed %.4f of %.4f; paper %.4f\n",
               norm, built, K, climbed, at, paper);
        free(x), free(y), lab_free(&lab);
    }
}

// scalar_model: every matrix W_ij = norm / I maps c (1 .. 1) to norm c (1 .. 1): the network acts
// on constant tokens as a chain of scalars, each layer with all of its norm, biases included.
static Lab scalar_model(Config *c, Rng *rng) {
    Lab lab = lab_create(c);
    for (int i = 0; i < lab.m->count; i++) {
        Tensor *t = &lab.m->tensors[i];
        bool zero = t->kind == QUERY || t->kind == KEY || t->kind == POSITION;
        double norm = 0.5 + 1.5 * rng_uniform(rng);
        for (size_t j = 0; j < t->size && !zero; j++)
            lab.m->weights[t->offset + j] = (float)(is_matrix(t->kind) ? norm / t->cols : norm);
    }
    return lab;
}

// (2), (5), (6) and both activation bounds are reached, and the MLP's and the head's constants too.
static void test_layers_are_tight(void) {
    for (int i = 0; i < 24; i++) {
        Rng rng = {(uint64_t)i + 7};
        Config c = small_config(16, 1 << i / 3 % 3, 3, 10);
        c.activation = i % 3, c.bias = 1, c.plain_residual = i / 6 % 2;
        c.attention_factor = i % 2 ? 1 : 0.5;
        Lab lab = scalar_model(&c, &rng);
        double K = sound(&lab), R = lab.certificate.radius / (1 + 1e-6), h = 1e-3;
        float *x = floats(2 * 16), *y = floats(2 * 16);
        h = sizeof(float) == 4 && c.activation != GELU ? 0.02 : h; // the others are linear here
        for (int j = 0; j < 2 * 16; j++)
            x[j] = (float)R, y[j] = (float)(R * (1 - h));
        run(lab.m, lab.s, x, 2);
        for (int layer = 0; layer < 6; layer++) {
            BlockState *b = &lab.s->blocks[(layer + 1) / 2 % 3];
            float *after = layer == 5  ? lab.s->last
                           : layer % 2 ? b->x
                                       : lab.s->blocks[layer / 2].mid;
            double seen = largest_row(after, 2, 16, NULL);
            double bound = lab.certificate.layers[layer].activation;
            check(seen <= bound && (seen > 0.998 * bound || c.activation == GELU),
                  "layer %d, %d: an activation of %.8g, its bound %.8g", layer, c.activation, seen,
                      bound);
        }
        // b_in puts z where the slope is largest
        for (int l = 0; c.activation == GELU && l < 3; l++) {
            run(lab.m, lab.s, x, 2);
            float *b = weight(&lab, IN_BIAS, l), shift = (float)1.413 - lab.s->blocks[l].z[0];
            for (int j = 0; j < c.width * c.mlp_ratio; j++)
                b[j] += shift;
        }
        K = sound(&lab);
        double ratio = pair_ratio(&lab, x, y, 2, NULL, NULL) / K;
        REPORT("scalars, activation %d: %.6f of K = %.5g\n", c.activation, ratio, K);
        check(ratio <= 1 && ratio > 0.985, "scalars, activation %d: %.6f of K", c.activation,
              ratio);
        free(x), free(y), lab_free(&lab);
    }
}

// The domain counts: outside |x| <= R the certificate of R is exceeded, that of the larger ball
// not.
static void test_radius_counts(void) {
    Lab lab = attention_only(16, 1, 24);
    float x[3 * 16], y[3 * 16];
    worst_head(&lab, 1, 1, x, y, 1e-3);
    sound(&lab);
    for (int i = 0; i < 3 * 16; i++)
        x[i] *= (float)1.25, y[i] *= (float)1.25;
    double ratio = pair_ratio(&lab, x, y, 3, NULL, NULL), K[2];
    for (int i = 0; i < 2; i++) {
        compose(lab.m, &lab.norms, i ? 1.25 * (1 + 1e-6) : 1, &lab.certificate);
        K[i] = pow(10, lab.certificate.log10_sound);
    }
    check(ratio > 1.4 * K[0] && ratio <= K[1], "|x| = 1.25: %.5g; K of 1 and 1.25: %.5g, %.5g",
          ratio, K[0], K[1]);
    lab_free(&lab);
}

// spectral_norm brackets matrices whose norm is known exactly, also where power iteration falls
// short.
static void test_spectral_bracket(void) {
    for (int i = 0; i < 40; i++) {
        Rng rng = {(uint64_t)i};
        // n 4, 16, 64
        int n = 4 << i % 3 * 2, k = n * (1 + i % 2), tall = i / 2 % 2, kind = i / 4 % 4;
        float *w = floats((size_t)n * k);
        double truth = 1, gap = ldexp(1, -14), v2 = 0, u2 = 0;
        double *u = doubles((size_t)k), *v = doubles((size_t)k);
        for (int j = 0; j < k; j++)
            u[j] = (double)rng_below(&rng, 9) - 4, v[j] = (double)rng_below(&rng, 9) - 4;
        for (int j = 0; j < k; j++)
            v2 += v[j] * v[j], u2 += j < n ? u[j] * u[j] : 0;
        for (int r = 0; r < n; r++)
            for (int j = 0; j < k; j++) {
                double e = kind == 0   ? u[r] * v[j]                              // rank one
                           // Hadamard
                           : kind == 1 ? (__builtin_popcount((unsigned)(r & j)) % 2 ? -1 : 1)
                           : kind == 2 ? (r == j) * (r ? 0.5 : 3)
                           : j >= n ? 0 // Q diag(1, 1, .., 1 - gap, ..) Q, Q = 1 - 2/n ones
                                    : (r == j) * (1 - gap * (r % 2)) + (r % 2) * 2.0 / n * gap +
                                      (j % 2) * 2.0 / n * gap - 2.0 / n * gap;
                w[tall ? (size_t)j * n + r : (size_t)r * k + j] = (float)ldexp(e, i * 5 - 100);
            }
        truth = ldexp(kind == 0 ? sqrt(u2 * v2) : kind == 1 ? sqrt(k) : kind == 2 ? 3 : 1,
                      i * 5 - 100);
        Bracket b = spectral_norm(w, tall ? k : n, tall ? n : k, NULL);
        double wide = pow(n, ldexp(1, -14)) * (1 + 1e-8);
        check(b.lower <= truth && truth <= b.upper && b.upper <= truth * wide &&
              b.lower >= truth * 0.999,
              "kind %d, %d x %d: %.17g in [%.17g, %.17g]", kind, n, k, truth, b.lower, b.upper);
        free(w), free(u), free(v);
    }
    float w[4] = {1, NAN, 0, 1}, zero[4] = {0};
    check(spectral_norm(w, 2, 2, NULL).upper == INFINITY, "a matrix with a NaN has no finite norm");
    check(spectral_norm(zero, 2, 2, NULL).upper == 0, "a zero matrix has norm 0");
}

// K rises with every norm and with the radius; q, k, v count by their slices, not as a whole.
static void test_compose_is_monotone(void) {
    for (int i = 0; i < 30; i++) {
        Rng rng = {(uint64_t)i};
        Config c = random_config(i * FAMILIES, &rng);
        Lab lab = lab_create(&c);
        for (int j = 0; j < lab.m->count * lab.norms.slots; j++)
            lab.norms.of[j].upper = 0.2 + 2 * rng_uniform(&rng);
        compose(lab.m, &lab.norms, 0.7, &lab.certificate);
        double before = lab.certificate.log10_sound;
        for (int j = 0; j < lab.m->count * lab.norms.slots; j++) {
            Tensor *t = &lab.m->tensors[j / lab.norms.slots];
            int slot = j % lab.norms.slots;
            bool sliced = t->kind == QUERY || t->kind == KEY || t->kind == VALUE, used = slot == 0;
            used = sliced ? slot > 0 : used && is_matrix(t->kind);
            if (t->kind == IN_BIAS && c.bias && slot == 0) // through the scores of a later block
                used = t->block + 1 < c.blocks;
            lab.norms.of[j].upper *= 1.01;
            compose(lab.m, &lab.norms, 0.7, &lab.certificate);
            double after = lab.certificate.log10_sound;
            check(used ? after > before : after == before, "%s, slot %d: %.12g -> %.12g", t->name,
                  slot, before, after);
            lab.norms.of[j].upper /= 1.01;
        }
        compose(lab.m, &lab.norms, 0.71, &lab.certificate);
        check(lab.certificate.log10_sound > before, "radius: %.12g -> %.12g", before,
              lab.certificate.log10_sound);
        lab_free(&lab);
    }
}

// The norm of a slice with all of a matrix's energy is sqrt(H) times the matrix's.
static void test_slices(void) {
    for (int H = 1; H <= 8; H *= 2) {
        Rng rng = {(uint64_t)H};
        Config c = small_config(16, H, 1, 10);
        Lab lab = lab_create(&c);
        fill_model(&lab, ONE_HEAD, 1, 1, &rng);
        sound(&lab);
        double whole = norm_of(lab.m, &lab.norms, QUERY, 0, 0)->upper;
        double slice = norm_of(lab.m, &lab.norms, QUERY, 0, 1)->upper;
        near(slice, sqrt(H), 3e-4, "|W_q^h|"); // 3e-4: the bracket's width, 16^(1/16384)
        near(whole, 1, 3e-4, "|W_q|");
        double beta = score_bound(lab.m, &lab.norms, 0, 1, lab.certificate.radius);
        near(beta, H * square(lab.certificate.radius), 1e-3, "beta_h");
        lab_free(&lab);
    }
}

// K = 0 and K beyond double are numbers too, never NaN.
static void test_compose_at_the_ends(void) {
    Config c = small_config(16, 2, 2, 10);
    c.residual = 1; // and all weights zero: f is constant
    Lab lab = lab_create(&c);
    check(sound(&lab) == 0, "K of a constant is %g", sound(&lab));
    for (int j = 0; j < lab.m->count * lab.norms.slots; j++)
        lab.norms.of[j].upper = 1e120;
    norm_of(lab.m, &lab.norms, QUERY, 1, 1)->upper = 0; // beside an activation bound of 1e360
    compose(lab.m, &lab.norms, 1, &lab.certificate);
    check(lab.certificate.log10_sound == INFINITY, "K of huge norms is 10^%g",
          lab.certificate.log10_sound);
    lab_free(&lab);
}

static Config profile(int tight, double K) { // the presets' caps, scaled to the budget K
    Config c = small_config(16, 4, 2, 12);
    c.cap_qk = c.cap_v = c.cap_o = c.cap_in = c.cap_out = c.cap_head = 1.2;
    c.cap_embed = 1, c.cap_bias = 0.25, c.activation = GELU, c.mlp_ratio = 4, c.lipschitz = K;
    c.residual = 0.25, c.attention_factor = 1.0 / 3;
    if (tight) {
        c.residual = 0.5, c.attention_factor = 1, c.activation = MAXMIN;
        c.position_bias = c.bias = c.per_head = 1, c.share_embed = 50, c.share_head = 20;
        c.cap_qk = 0.6, c.cap_v = 0.9, c.cap_o = 1, c.cap_in = c.cap_out = 1.5, c.cap_head = 4;
    }
    apply_budget(&c);
    return c;
}

// fill_to_caps: every part at its cap, by a matrix of the family.
static void fill_to_caps(Lab *lab, Family family, Rng *rng) {
    for (int i = 0; i < lab->m->count; i++) {
        Tensor *t = &lab->m->tensors[i];
        float *w = lab->m->weights + t->offset;
        bool split = t->kind == QUERY || t->kind == KEY || t->kind == VALUE;
        int rows = t->rows / t->parts, H = lab->m->config.heads;
        for (int p = 0; p < t->parts && t->size; p++, w += (size_t)rows * t->cols)
            if (!is_matrix(t->kind))
                fill_rows(w, rows, t->cols, t->cap > 0 ? t->cap : 3, rng);
            else if (family == ONE_HEAD && split && t->parts == 1) {
                memset(w, 0, t->size * sizeof *w);
                fill_matrix(w, rows / H, t->cols, ORTHOGONAL, t->cap * sqrt(H), rng);
            } else
                fill_matrix(w, rows, t->cols, family == ONE_HEAD ? ORTHOGONAL : family, t->cap,
                            rng);
    }
}

// A budget K is used up by the caps, and no weights at their caps and no step can pass it.
static void test_budget(void) {
    static const double budgets[] = {1.5, 2, 10, 100, 1e4};
    for (int i = 0; i < 10; i++) {
        double K = budgets[i / 2], largest = 0;
        Rng rng = {(uint64_t)i};
        Config c = profile(i % 2, K);
        double allowed = pow(10, bound_at_caps(&c, 1));
        check(allowed <= K && allowed > 0.98 * K, "budget %g, profile %d: the caps allow %.6g", K,
              i % 2, allowed);
        Lab lab = lab_create(&c);
        for (Family family = GAUSSIAN; family <= ONE_HEAD; family++) {
            fill_to_caps(&lab, family, &rng);
            largest = larger(largest, sound(&lab));
            check(sound(&lab) <= K, "budget %g, profile %d, %s: K = %.8g", K, i % 2,
                  family_names[family], sound(&lab));
        }
        REPORT("budget %g, profile %d: caps allow %.6g, weights at caps %.6g\n", K, i % 2, allowed,
               largest);
        check(largest > 0.9 * K, "budget %g, profile %d: weights at caps reach %g", K, i % 2,
              largest);
        lab_free(&lab);
    }
}

// Huge steps along random gradients, from the first: the certificate stays below the budget.
static void test_budget_after_every_step(void) {
    static const double rates[] = {0.1, 1, 30, 1e3}, decays[] = {0, 0.05, 1};
    double fullest = 0;
    for (int i = 0; i < 48; i++) {
        double K = i / 24 ? 10 : 1.5, largest = 0;
        Config c = profile(i % 2, K);
        c.weight_decay = decays[i / 8 % 3];
        Lab lab = lab_create(&c);
        Rng rng = {(uint64_t)i};
        float *g = floats(lab.m->size);
        model_init(lab.m, &rng);
        for (int step = 0; step < 8; step++) {
            for (size_t j = 0; j < lab.m->size; j++)
                g[j] = (float)(rng_normal(&rng) * (step % 3 ? 1 : 1e-6));
            optimizer_step(lab.m, g, rates[i / 2 % 4]);
            largest = larger(largest, sound(&lab));
        }
        check(largest <= K, "budget %g, profile %d, rate %g, decay %g: K = %.6g", K, i % 2,
              rates[i / 2 % 4], c.weight_decay, largest);
        fullest = larger(fullest, largest / K);
        free(g), lab_free(&lab);
    }
    check(fullest > 0.9, "no step comes closer to its budget than %g", fullest);
}

// certified_radius: the largest eps at which a position with this margin is certified.
static double certified_radius(Lab *lab, double room, double radius) {
    double low = 0, high = 4;
    for (int i = 0; i < 50; i++) {
        double eps = (low + high) / 2;
        compose(lab->m, &lab->norms, radius + eps, &lab->certificate);
        *(room >= pow(10, lab->certificate.log10_trunk) * eps * (1 + 1e-9) ? &low : &high) = eps;
    }
    return low;
}

// rival_wins: whether logit j can be made to beat logit c at token t within eps of x, by projected
// ascent on their difference from a random start.
static bool rival_wins(const Lab *lab, const float *x, int c, int j, int t, int T, double eps,
                       Rng *rng) {
    int d = lab->m->config.width, V = lab->m->config.vocabulary;
    float *y = floats((size_t)T * d), *u = floats((size_t)V), *gradient = floats((size_t)T * d);
    bool wins = false;
    u[c] = -1, u[j] = 1;
    for (int i = 0; i < T * d; i++)
        y[i] = x[i] + (float)(eps * rng_normal(rng));
    for (int step = 0; step < 12 && !wins; step++) {
        project(y, x, eps, T, d);
        run(lab->m, lab->s, y, T);
        wins = lab->s->logits[(size_t)t * V + j] >= lab->s->logits[(size_t)t * V + c];
        pull_back(lab->m, lab->s, y, u, t, T, gradient);
        add_direction(y, gradient, step < 6 ? 2 * eps : eps / 2, T, d);
    }
    free(y), free(u), free(gradient);
    return wins;
}

// A certified position survives every attack inside its radius; not much further out, some fall.
static void test_certified_predictions(void) {
    double weakest = INFINITY;
    for (int i = 0; i < 8; i++) {
        enum { T = 5, d = 16, V = 6 };
        Rng rng = {(uint64_t)i};
        Config c = small_config(d, 1 + i % 2, 1 + i / 4, V);
        c.activation = i % 3, c.bias = c.position_bias = i / 2 % 2, c.plain_residual = i / 2 % 2;
        Lab lab = lab_create(&c);
        fill_model(&lab, i % 2 ? ORTHOGONAL : GAUSSIAN, 0.3, 1.5, &rng);
        sound(&lab);
        double R = lab.certificate.radius, radii[T], *distances = head_distances(lab.m), sorted = 0;
        float x[T * d], moved[T * d];
        uint16_t tokens[T], targets[T];
        for (int t = 0; t < T; t++)
            tokens[t] = (uint16_t)rng_below(&rng, V);
        embedding_forward(x, weight(&lab, EMBED, 0), tokens, T, d);
        run(lab.m, lab.s, x, T);
        for (int t = 0; t < T; t++) {
            const float *z = lab.s->logits + (size_t)t * V;
            targets[t] = 0;
            for (int v = 1; v < V; v++)
                targets[t] = z[v] > z[targets[t]] ? (uint16_t)v : targets[t];
            double room = margin(z, targets[t], distances, V);
            check(room > 0 && margin(z, (targets[t] + 1) % V, distances, V) < 0, "margin %g", room);
            radii[t] = certified_radius(&lab, room, R);
            sorted += radii[t] / T;
        }
        for (int t = 0; t < T; t++) {
            bool safe[T];
            for (int steps = 5; steps <= 40; steps *= 2) {
                memset(safe, 1, sizeof safe);
                attack(lab.m, lab.s, x, targets, 0.999 * radii[t], steps, T, safe);
                for (int p = 0; p < T; p++)
                    check(safe[p] || radii[p] < radii[t], "position %d fell at its radius %g", p,
                          radii[p]);
            }
            for (int j = 0; j < V; j++)
                for (double by = 0.999; j != targets[t] && by < 40; by *= 1.4)
                    if (rival_wins(&lab, x, targets[t], j, t, T, by * radii[t], &rng)) {
                        check(by > 1, "position %d fell to class %d at %g of its radius", t, j, by);
                        weakest = smaller(weakest, by);
                        break;
                    }
            for (int trial = 0; trial < 50; trial++) {
                for (int p = 0; p < T * d; p++)
                    moved[p] = x[p] + (float)(4 * radii[t] * rng_normal(&rng));
                project(moved, x, 0.999 * radii[t], T, d);
                run(lab.m, lab.s, moved, T);
                check(margin(lab.s->logits + (size_t)t * V, targets[t], distances, V) >= 0,
                      "a random move within %g flips position %d", radii[t], t);
            }
        }
        bool safe[T];
        int certified = 0, held = 0;
        memset(safe, 1, sizeof safe);
        attack(lab.m, lab.s, x, targets, sorted, 20, T, safe);
        for (int t = 0; t < T; t++)
            certified += radii[t] >= sorted, held += safe[t];
        check(held >= certified, "%d held, %d certified", held, certified);
        free(distances), lab_free(&lab);
    }
    REPORT("certified predictions: the first falls at %.3f of its radius\n", weakest);
    check(weakest < 4, "no prediction falls before %g times its certified radius", weakest);
}

// What is printed of a bound is a bound, too.
static void test_show_bound(void) {
    Rng rng = {1};
    for (int i = 0; i < 2000; i++) {
        double x = i < 100 ? i / 10.0 : 20 * rng_uniform(&rng) - 5, printed = atof(show_bound(x));
        check(printed >= pow(10, x), "10^%.17g is printed as %s", x, show_bound(x));
        at_most(printed / pow(10, x) - 1, 1.1e-5, "printed bound, relative");
        check(rounded_up(x, 1e6) >= x && rounded_up(x, 1e6) < x + 1.1e-6, "log10 %.17g", x);
    }
    check(!strcmp(show_bound(0), "1") && !strcmp(show_bound(2), "100"), "exact bounds are exact");
    check(!strcmp(show_bound(310.00001), "10^310.0001"), "10^310.00001: %s", show_bound(310.00001));
    check(!strcmp(show_bound(INFINITY), "10^inf"), "an infinite bound: %s", show_bound(INFINITY));
}

// ------------------------------------------------------------------------------------------------
// The program from outside: command line, text, files, training, resuming, hostile checkpoints.
// Each test runs the real binary, in a temporary directory. Nothing here depends on precision.

#ifndef TEST_DOUBLE

static const char *binary = "./lipgpt";
static char cli_out[1 << 16], cli_err[1 << 16], cli_line[4096]; // of the last run
static bool cli_leaks_matter = true;
static rlim_t cli_limit = RLIM_INFINITY; // the largest file a run may write: a full disk

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined __SANITIZE_ADDRESS__ || __has_feature(address_sanitizer)
enum { CLI_FUZZ = 150, CLI_STRIDE = 40, CLI_CUT = 17 };
#else
enum { CLI_FUZZ = 400, CLI_STRIDE = 1, CLI_CUT = 3 };
#endif

#define CLI_NET "--width 16 --heads 2 --blocks 1 --context 8 --batch 4 --lr 0.1 --sample-every 0 "
#define CLI_SMALL "--width 2 --heads 1 --blocks 1 --context 2 --batch 2 --mlp-ratio 1 --tokens 5 "

// cli_read: a whole file and a final 0, or NULL if there is none.
static char *cli_read(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    char *bytes = calloc(1, 1 << 20);
    if (file && bytes) {
        *size = fread(bytes, 1, (1 << 20) - 1, file);
        fclose(file);
        return bytes;
    }
    free(bytes);
    return NULL;
}

static void cli_write(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    check(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0, "cannot write %s",
          path);
}

static bool cli_same(const char *a, const char *b) { // both files are there, and equal
    size_t n = 0, m = 0;
    char *x = cli_read(a, &n), *y = cli_read(b, &m);
    bool same = x && y && n == m && !memcmp(x, y, n);
    free(x), free(y);
    return same;
}

// cli_start: the binary with arguments separated by spaces; never longer than two minutes. Not by
// fork: after one, LLVM's OpenMP leaves a page behind in /dev/shm, and a small one fills up.
static pid_t cli_child;
static void cli_too_long(int signal_number) { (void)signal_number, kill(cli_child, SIGKILL); }

static pid_t cli_start(const char *arguments) {
    extern char **environ;
    char words[4096], *argv[256] = {(char *)binary};
    struct rlimit limit;
    posix_spawn_file_actions_t files;
    snprintf(cli_line, sizeof cli_line, "%s", arguments), memcpy(words, cli_line, sizeof words);
    char *word = strtok(words, " ");
    for (int i = 1; word && i < 255; word = strtok(NULL, " "))
        argv[i++] = word;
    // an exit status of its own, so that a sanitizer's stop is no refusal
    setenv("ASAN_OPTIONS", cli_leaks_matter ? "exitcode=99" : "exitcode=99:detect_leaks=0", 1);
    posix_spawn_file_actions_init(&files);
    for (int i = 1; i <= 2; i++)
        posix_spawn_file_actions_addopen(&files, i, i == 1 ? "stdout" : "stderr",
                                         O_WRONLY | O_CREAT | O_TRUNC, 0666);
    fflush(NULL), getrlimit(RLIMIT_FSIZE, &limit); // what a child inherits: the disk's size, and
    rlim_t all = limit.rlim_cur;                   // that it gets an error, not a signal
    limit.rlim_cur = cli_limit < all ? cli_limit : all, setrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_IGN);
    if (posix_spawn(&cli_child, binary, &files, NULL, argv, environ) != 0)
        printf("cannot start %s\n", binary), exit(1);
    limit.rlim_cur = all, setrlimit(RLIMIT_FSIZE, &limit);
    posix_spawn_file_actions_destroy(&files);
    signal(SIGALRM, cli_too_long), alarm(120);
    return cli_child;
}

static int cli_finish(pid_t child) { // exit status, or minus the signal that killed it
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    alarm(0);
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen(i ? "stderr" : "stdout", "r");
        char *text = i ? cli_err : cli_out;
        text[file ? fread(text, 1, sizeof cli_out - 1, file) : 0] = 0;
        if (file)
            fclose(file);
    }
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int cli_run_list(const char *format, va_list list) {
    char arguments[4096];
    vsnprintf(arguments, sizeof arguments, format, list);
    return cli_finish(cli_start(arguments));
}

__attribute__((format(printf, 1, 2)))
static int cli_run(const char *format, ...) {
    va_list list;
    va_start(list, format);
    int status = cli_run_list(format, list);
    va_end(list);
    return status;
}

// cli_refused: the failure policy: a status, one line on stderr that says why, nothing on stdout.
static void cli_refused(int status, int wanted, const char *reason) {
    size_t n = strlen(cli_err);
    check(status == wanted, "status %d, not %d: lipgpt %s: %.300s", status, wanted, cli_line,
          cli_err);
    check(!strncmp(cli_err, "lipgpt: ", 8) && strchr(cli_err, '\n') == cli_err + n - 1,
          "not one line \"lipgpt: ...\": lipgpt %s: %.300s", cli_line, cli_err);
    check(strstr(cli_err, reason) != NULL, "no \"%s\": lipgpt %s: %.300s", reason, cli_line,
          cli_err);
    check(!*cli_out, "an error wrote to stdout: lipgpt %s: %.300s", cli_line, cli_out);
}

// cli_refuses: runs and checks that. A program that dies need not free its memory.
__attribute__((format(printf, 3, 4)))
static void cli_refuses(int wanted, const char *reason, const char *format, ...) {
    va_list list;
    va_start(list, format);
    cli_leaks_matter = false;
    cli_refused(cli_run_list(format, list), wanted, reason);
    cli_leaks_matter = true;
    va_end(list);
}

// cli_good: a run that must succeed.
static void cli_good(int status) {
    check(status == 0, "status %d: lipgpt %s: %.300s", status, cli_line, cli_err);
}

// cli_value: the number behind `name<TAB>` at the start of a line, NAN if there is no such line.
static double cli_value(const char *name) {
    size_t n = strlen(name);
    for (const char *line = cli_out; line; line = strchr(line, '\n'), line += line != NULL)
        if (!strncmp(line, name, n) && line[n] == '\t')
            return strtod(line + n + 1, NULL);
    return NAN;
}

static void cli_remove(const char *path) { // a file, or a directory with all that is in it
    DIR *directory = opendir(path);
    char inner[1024];
    for (struct dirent *d; directory && (d = readdir(directory));)
        if (strcmp(d->d_name, ".") && strcmp(d->d_name, "..")) {
            snprintf(inner, sizeof inner, "%s/%.255s", path, d->d_name);
            cli_remove(inner);
        }
    if (directory)
        closedir(directory);
    remove(path);
}

// cli_texts: 6000 bytes of words in a random order, another such text, and two letters.
static void cli_texts(void) {
    static const char *const words[] = {"to ", "be ", "or ", "not ", "that ", "is ", "a ",
                                        "dream\n"};
    for (unsigned which = 0; which < 2; which++) {
        char text[6001] = "";
        unsigned draw = which;
        for (size_t n = 0; n < 5990; n += strlen(text + n))
            draw = draw * 1103515245 + 12345, strcpy(text + n, words[draw >> 16 & 7]);
        cli_write(which ? "other" : "text", text, strlen(text));
    }
    char two[200];
    for (size_t i = 0; i < sizeof two; i++)
        two[i] = "ab"[i * i % 7 & 1];
    cli_write("two", two, sizeof two);
}

// --- Command line: every mistake has its own answer, with status 2, and names the key.
static void test_cli_arguments(void) {
    static const struct { const char *arguments, *reason; } bad[] = {
        {"dance", "dance is not a command"}, {"--steps 3", "not a command"},
        {"train --colour red", "--colour is not an option"}, {"train red", "red is not an option"},
        {"train -steps 3", "-steps is not an option"}, {"train --step 3", "--step is not"},
        {"train --stepss=3", "--stepss=3 is not"}, {"train --=3", "is not an option"},
        {"train -", "is not an option"}, {"train --", "is not an option"},
        {"train --prompt x", "--prompt is not"}, {"sample --steps 3", "--steps is not"},
        {"eval --windows 1", "--windows is not"}, {"train --steps", "--steps needs a value"},
        {"certify --seed 1 --windows", "--windows needs a value"}, {"train --steps=", "--steps"},
        {"train --steps x", "--steps takes an integer"}, {"train --steps 3x", "--steps"},
        {"train --steps 2.5", "--steps"}, {"train --steps 0", "--steps"}, {"train --steps -1",
                                                                           "--steps"},
        {"train --steps 1e300", "--steps"}, {"train --steps nan", "--steps"},
        {"train --steps inf", "--steps"}, {"train --width 1", "--width"},
        {"train --width 99999999999", "--width"}, {"train --lr fast", "--lr takes a number"},
        {"train --lr nan", "--lr"}, {"train --lr -0.1", "--lr"}, {"train --lr 1e999", "--lr"},
        {"train --beta 1", "--beta"}, {"train --temperature=-1", "--temperature"},
        {"train --bias=2", "--bias"}, {"train --bias 2", "2 is not an option"},
        {"train --per-head=yes", "--per-head"}, {"train --seed -1", "--seed"},
        {"train --steps 3 --steps 4", "--steps is given twice"},
        {"train --bias --bias", "--bias is given twice"}, {"train --activation relu",
                                                           "--activation"},
        {"train --activation gel", "gelu|abs|maxmin"}, {"train --activation=", "--activation"},
        {"train --preset best", "--preset"}, {"train --data text --steps 2 --width 16 --heads 3",
                                              "--heads 3"},
        {"train --data text --steps 2 --width 6 --heads 2", "head width 6 / 2 = 3 is odd"},
        {"train --data text --width 65536 --heads 1 --context 8 --blocks 99", "smaller width"},
        {"train --lipschitz 10 --cap 1", "--lipschitz"}, {"train --lipschitz 10 --cap-v 1",
                                                          "--lipschitz"},
        {"train --lipschitz -1", "--lipschitz"}, {"train --lipschitz 9 --cap-embed 0", "cap-embed"},
        {"train --preset tight --lipschitz 9 --cap-bias 0", "--cap-bias"},
        {"train --data text --context 8 --lipschitz 1e-9", "--lipschitz 1e-09 is too small"},
        {"train --resume no.st --lr 1", "--lr"}, {"train --resume no.st --bias", "--bias"},
        {"train --residual 1", "--residual"}, // keeps nothing: no gradient ever reaches a weight
        {"certify --model no.st --search-steps 0 --pair p.st", "--pair p.st"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cli_refuses(2, bad[i].reason, "%s", bad[i].arguments);
    check(cli_run("%s", "") == 2 && *cli_err && !*cli_out, "no arguments: not usage on stderr");
    check(cli_run("--help") == 0 && strstr(cli_out, "--softmax-scale") && !*cli_err, "--help: %s",
          cli_err);
    check(cli_run("sample --seed 3 --help") == 0 && strstr(cli_out, "--prompt") && !*cli_err,
          "sample --help: %s", cli_err);
    cli_good(cli_run("train --help"));
    check(strstr(cli_out, "0 = none [1.2]") != NULL, "--help shows another default of --cap: %s",
          cli_out);
}

// The smallest budget that a refusal names must itself be accepted, and then held.
static void test_cli_smallest_budget(void) {
    static const char *const line = "train --data text " CLI_NET "--steps 2 --lipschitz %s";
    char smallest[32] = "";
    cli_refuses(2, "smallest possible", line, "1e-9");
    const char *at = strstr(cli_err, "possible is ");
    check(at && sscanf(at, "possible is %31[0-9.e+-]", smallest) == 1, "no number in: %s", cli_err);
    cli_good(cli_run(line, smallest));
    check(cli_value("certificate") <= strtod(smallest, NULL), "%g over the budget %s",
          cli_value("certificate"), smallest);
}

// --- Text, tokens: what cannot be trained on says why; what can, trains.
static void test_cli_data(void) {
    static const struct { const char *file, *bytes; size_t size; const char *reason; } bad[] = {
        {"none", NULL, 0, "none"}, {"directory", NULL, 0, "not a regular file"},
        {"empty", "", 0, "empty has 0 tokens"}, {"short", "abcabcabcabcabcab", 17, "17 tokens"},
    };
    char one[100];
    unsigned char all[2560];
    int32_t header[256] = {20240520, 1, 500};
    uint16_t tokens[500];
    unsigned char shard[1024 + 1000];
    mkdir("directory", 0777);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (bad[i].bytes)
            cli_write(bad[i].file, bad[i].bytes, bad[i].size);
        cli_refuses(1, bad[i].reason, "train " CLI_NET "--steps 2 --data %s", bad[i].file);
    }
    memset(one, 'x', sizeof one);
    cli_write("one", one, sizeof one);
    cli_refuses(1, "distinct byte", "train " CLI_NET "--steps 2 --data one");
    for (size_t i = 0; i < sizeof all; i++)
        all[i] = (unsigned char)(i * 7);
    cli_write("all", all, sizeof all);
    cli_good(cli_run("train " CLI_NET "--steps 2 --tokens 9 --data all --out all.st"));
    check(strstr(cli_err, "vocabulary 256") != NULL, "all bytes: %s", cli_err);
    cli_write("utf8", "h\xc3\xa9l\xc3\xa9ne na\xc3\xafve \xe2\x82\xac! \xf0\x9f\x8c\x8d\n", 27);
    cli_good(cli_run("train --data utf8 " CLI_NET "--steps 2 --tokens 9 --out utf8.st"));
    cli_good(cli_run("sample --model utf8.st --tokens 2 --prompt h\xc3\xa9l"));
    check(!strncmp(cli_out, "h\xc3\xa9l", 4), "an UTF-8 prompt came back as %s", cli_out);
    for (int i = 0; i < 500; i++)
        tokens[i] = (uint16_t)(i * i % 300);
    memcpy(shard, header, 1024), memcpy(shard + 1024, tokens, 1000);
    cli_write("shard", shard, sizeof shard);
    cli_good(cli_run("train " CLI_NET "--steps 2 --tokens 3 --data shard --out shard.st"));
    check(strstr(cli_err, "500 tokens, vocabulary 384") != NULL, "shard: %s", cli_err);
    cli_good(cli_run("eval --data shard --model shard.st"));
    cli_good(cli_run("sample --model shard.st --tokens 3"));
    cli_refuses(1, "token shard", "eval --data text --model shard.st");
    cli_refuses(1, "--prompt", "sample --model shard.st --prompt a");
    cli_write("cut", shard, sizeof shard - 1);
    cli_refuses(1, "500 tokens but has 2023 bytes", "train " CLI_NET "--steps 2 --data cut");
    cli_write("cut", shard, 1000); // also when not even its header is whole
    cli_refuses(1, "1000 bytes", "train " CLI_NET "--steps 2 --data cut");
    header[2] = -1, memcpy(shard, header, 1024);
    cli_write("cut", shard, sizeof shard);
    cli_refuses(1, "-1 tokens", "train " CLI_NET "--steps 2 --data cut");
}

// cli_table: the log has its header and rows of as many columns, at steps first, first + every ...
static void cli_table(const char *path, int every, int last) {
    size_t n = 0;
    char *log = cli_read(path, &n), *row = log;
    int tabs = 0, wanted = 0, step = 0;
    check(log && strstr(log,
                        "step\ttokens\ttrain_loss\tfull_loss\tfull_accuracy\tcertificate\t") == log,
          "%s has no header: %.80s", path, log ? log : "");
    for (char *p = log; p && *p && *p != '\n'; p++)
        wanted += *p == '\t';
    while (row && (row = strchr(row, '\n')) && *++row) {
        char *end = strchr(row, '\n');
        step += every, tabs = 0;
        for (char *p = row; end && p < end; p++)
            tabs += *p == '\t';
        check(end && atoi(row) == step && tabs == wanted,
              "%s: step %d wanted, %d tabs of %d: %.60s", path,
              step, tabs, wanted, row);
    }
    check(step == last, "%s ends at step %d, not %d", path, step, last);
    free(log);
}

// --- A tiny run: what train, eval, certify and sample write and where.
static void test_cli_outputs(void) {
    static const char *const names[] = {"full_loss", "full_accuracy", "slice_loss",
                                        "slice_accuracy",
        "largest_activation", "certificate", "certificate_log10", "paper_bound",
        "paper_bound_log10"};
    size_t n = 0;
    cli_good(cli_run("train --data=text " CLI_NET "--steps=20 --eval-every 5 --tokens 40 --cap 1 "
                     "--out a/b/m.st --log=a/c/log"));
    double loss = cli_value("full_loss"), certificate = cli_value("certificate");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check(isfinite(cli_value(names[i])), "train: no %s in: %s", names[i], cli_out);
    check(strstr(cli_out, "checkpoint\ta/b/m.st\n") && strstr(cli_out, "log\ta/c/log\n") &&
          !strstr(cli_out, "note\t"), "train: %s", cli_out);
    check(loss > 0 && loss < log(16), "loss %g: worse than uniform", loss);
    cli_table("a/c/log", 5, 20);
    char *sample = cli_read("a/b/m.st.txt", &n);
    check(sample && n == 41, "the sample of 40 tokens has %zu bytes", n);
    free(sample);
    check(access("a/b/m.st.tmp", F_OK) != 0, "a/b/m.st.tmp was left behind");
    cli_good(cli_run("eval --data text --model a/b/m.st"));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check(isfinite(cli_value(names[i])), "eval: no %s in: %s", names[i], cli_out);
    check(strstr(cli_out, "data\ttext\n") != NULL, "eval does not say on what: %s", cli_out);
    cli_good(cli_run("eval --model a/b/m.st")); // the text it was trained on is the default
    check(cli_value("full_loss") == loss && cli_value("certificate") == certificate,
          "eval says %g, %g, train %g, %g", cli_value("full_loss"), cli_value("certificate"), loss,
          certificate);
    cli_good(cli_run("certify --data text --model a/b/m.st --search-steps 5 --windows 2 "
                     "--pair a/p.st"));
    check(cli_value("certificate") == certificate && cli_value("lower_bound") > 0 &&
          cli_value("lower_bound") <= certificate, "certify: %g over %g", cli_value("lower_bound"),
          certificate);
    check(cli_value("blocks.0.mlp.in.weight") <= 1 && strstr(cli_out,
                                                             "\nweight\tlower\tupper\tcap\n") &&
          strstr(cli_out, "\nblocks.0.attention\t") && strstr(cli_out, "\nhead\t"), "certify: %s",
          cli_out);
    check(cli_value("0.5") <= cli_value("0.01") && cli_value("0.01") <= cli_value("0"),
          "certified accuracy grows with eps: %s", cli_out);
    check(access("a/p.st", F_OK) == 0, "certify wrote no pair");
    cli_refuses(1, "a/p.st", "eval --data text --model a/p.st"); // a pair is not a model
    cli_refuses(1, "none.st", "eval --data other --model none.st");
    cli_refuses(1, "vocabulary", "eval --data all --model a/b/m.st");
    cli_write("split", "to be or not to be that", 20); // the validation split has 2 tokens
    cli_good(cli_run("certify --data split --model a/b/m.st --search-steps 1"));
    cli_write("split",
              "to be or not to be that is a dream\nto be or not to be that is a dream\n"
              "to be or not",
              80); // and as many as the context
    cli_good(cli_run("certify --data split --model a/b/m.st --search-steps 1"));
}

// Samples: the seed decides, temperature 0 is greedy, a prompt comes first and must be known.
static void test_cli_sample(void) {
    static const char *const runs[] = {"--seed 7", "--seed 7", "--seed 8",
                                       "--temperature 0 --seed 1",
                                       "--temperature=0 --seed=2"};
    char text[5][128] = {""};
    for (int i = 0; i < 5; i++) {
        cli_good(cli_run("sample --model a/b/m.st --tokens 60 --prompt that %s", runs[i]));
        check(!strncmp(cli_out, "that", 4) && strlen(cli_out) == 65, "sample: %s", cli_out);
        snprintf(text[i], sizeof text[i], "%.127s", cli_out);
    }
    check(!strcmp(text[0], text[1]), "one seed, two samples: %s%s", text[0], text[1]);
    check(strcmp(text[0], text[2]) != 0, "two seeds, one sample: %s", text[0]);
    check(!strcmp(text[3], text[4]), "temperature 0 depends on the seed: %s%s", text[3], text[4]);
    cli_refuses(1, "byte 63", "sample --model a/b/m.st --prompt dr?am");
    cli_good(cli_run("sample --model a/b/m.st --tokens 0 --prompt=is"));
    check(!strcmp(cli_out, "is\n"), "no tokens: %s", cli_out);
    cli_good(cli_run("sample --model a/b/m.st --tokens 0 --prompt=dream\nto"));
    check(!strcmp(cli_out, "dream\nto\n"), "a prompt of two lines: %s", cli_out);
}

// --- Resuming: an interrupted run ends bit for bit like the other, and so does any thread count.
static void test_cli_resume(void) {
    #define CLI_RUN "train --data text --preset tight --width 16 --heads 2 --blocks 2 " \
                    "--context 8 --batch 9 --steps 20 --eval-every 5 --tokens 9 "
    for (int threads = 1; threads <= 3; threads++) {
        char number[2] = {(char)('0' + threads), 0}, name[] = "t0.st";
        name[1] = number[0];
        setenv("OMP_NUM_THREADS", number, 1);
        cli_good(cli_run(CLI_RUN "--out %s --log whole", name));
        check(cli_same("t1.st", name), "%d threads make other bits than one", threads);
    }
    setenv("OMP_NUM_THREADS", "1", 1);
    cli_good(cli_run(CLI_RUN "--stop 10 --out part.st --log parts"));
    check(strstr(cli_err, "--resume part.st") && !*cli_out, "--stop: %s%s", cli_err, cli_out);
    cli_table("parts", 5, 10);
    check(!cli_same("t1.st", "part.st"), "--stop 10 made all steps");
    cli_good(cli_run("train --resume part.st --log parts --stop 15 --out later.st"));
    cli_good(cli_run("train --resume part.st --log parts --out end.st")); // again from 10
    check(cli_same("t1.st", "end.st"), "10 + 10 steps are not 20 steps");
    check(cli_same("t1.st.txt", "end.st.txt"), "10 + 10 steps write another sample");
    cli_table("parts", 5, 20);
    cli_good(cli_run("train --resume later.st --log more")); // --out is the resumed file
    check(cli_same("t1.st", "later.st"), "15 + 5 steps are not 20 steps");
    cli_good(cli_run(CLI_RUN "--optimizer adamw --lr 0.01 --out w.st --log whole"));
    cli_good(cli_run(CLI_RUN "--optimizer adamw --lr 0.01 --stop 10 --out h.st --log parts"));
    cli_good(cli_run("train --resume h.st --log parts"));
    check(cli_same("w.st", "h.st"), "adamw: 10 + 10 steps are not 20 steps");
    setenv("OMP_NUM_THREADS", "3", 1);
    cli_good(cli_run(CLI_RUN "--optimizer adamw --lr 0.01 --out h.st --log parts"));
    setenv("OMP_NUM_THREADS", "1", 1);
    check(cli_same("w.st", "h.st"), "adamw: three threads make other bits than one");
    size_t n = 0;
    float negative = -1;
    char *bytes = cli_read("w.st", &n); // ends with the mean squares
    memcpy(bytes + n - sizeof negative, &negative, sizeof negative);
    FILE *file = fopen("h.st", "w");
    check(file && fwrite(bytes, 1, n, file) == n && fclose(file) == 0, "cannot write h.st");
    free(bytes);
    cli_refuses(1, "negative", "certify --model h.st");
    cli_good(cli_run(CLI_RUN "--seed 1 --out seed.st --log seed"));
    char *before = cli_read("seed", &n), *after;
    cli_refuses(1, "another run", "train --resume part.st --log seed"); // would cost it its rows
    check((after = cli_read("seed", &n)) && before && !strcmp(before, after), "a log was lost");
    free(before), free(after);
    cli_refuses(2, "--lr", "train --resume part.st --lr 1");
    cli_refuses(2, "--context", "train --resume part.st --context=8");
    cli_refuses(1, "other", "train --resume part.st --data other");
    cli_refuses(1, "step 20 of 20", "train --resume end.st");
    cli_refuses(1, "none.st", "train --resume none.st");
    #undef CLI_RUN
}

// cli_interrupt: starts a run, and sends SIGINT as soon as `file` has `size` bytes.
static int cli_interrupt(const char *arguments, const char *file, int size) {
    struct stat status = {0};
    struct timespec wait = {0, 2000000};
    remove("stderr"); // of the run before
    pid_t child = cli_start(arguments);
    for (int i = 0; i < 10000 && (stat(file, &status) != 0 || status.st_size < size); i++)
        nanosleep(&wait, NULL);
    kill(child, SIGINT);
    return cli_finish(child);
}

// Ctrl-C saves, says how to go on, exits 130; and what is resumed ends like an uninterrupted run.
static void test_cli_interrupt(void) {
    #define CLI_RUN "train --data text " CLI_NET "--steps 1500 --tokens 9 --eval-every 100 "
    cli_good(cli_run(CLI_RUN "--out u.st --log u.log"));
    int status = cli_interrupt(CLI_RUN "--out i.st --log i.log", "i.st", 1);
    check(status == 130 && strstr(cli_err, "--resume i.st --log i.log") && !*cli_out,
          "SIGINT: status %d: %s", status, cli_err);
    check(access("i.st.tmp", F_OK) != 0, "i.st.tmp was left behind");
    cli_good(cli_run("train --resume i.st --log i.log"));
    check(cli_same("u.st", "i.st"), "interrupted and resumed is not uninterrupted");
    #undef CLI_RUN
    // also while a sample is being written, between two reports
    status = cli_interrupt("train --data text --width 16 --heads 2 --blocks 1 --context 8 "
                           "--batch 4 --steps 99 --eval-every 99 --sample-every 1 "
                           "--tokens 50000 --out s.st "
                           "--log s.log", "stderr", 2000);
    check(status == 130 && access("s.st", F_OK) == 0, "SIGINT during a sample: status %d, %s",
          status,
          access("s.st", F_OK) ? "nothing was saved" : "saved");
}

// --- Options: every one of `train --help` is taken, and what is saved is what was given.
static void test_cli_options(void) {
    static const char *const given[][2] = {
        {"data", "text"}, {"preset", "tight"}, {"steps", "4"}, {"batch", "3"}, {"context", "6"},
        {"width", "24"}, {"heads", "3"}, {"blocks", "2"}, {"mlp-ratio", "2"}, {"residual", "0.25"},
        {"plain-residual", "0"}, {"attention-factor", "0.5"}, {"softmax-scale", "2"},
        {"activation", "abs"}, {"position-bias", "1"}, {"bias", "1"}, {"per-head", "1"},
        {"lr", "0.125"}, {"beta", "0.75"}, {"optimizer", "adamw"},
        {"beta2", "0.5"}, {"constraint", "hard"}, {"spectral-decay", "0.125"},
        {"mass", "16"}, {"weight-decay", "0.0625"},
        {"share-embed", "2"}, {"share-head", "3"}, {"share-bias", "0.5"}, {"cap-qk", "0.5"},
        {"cap-v", "0.75"}, {"cap-o", "1.25"}, {"cap-in", "1.5"}, {"cap-out", "1.75"},
        {"cap-head", "2.5"}, {"cap-embed", "0.875"}, {"cap-bias", "0.375"}, {"lipschitz", "0"},
        {"lanes", "2"}, {"seed", "11"}, {"eval-every", "2"}, {"sample-every", "3"}, {"tokens", "7"},
        {"temperature", "0.5"}, {"cap", "3"}, {"out", "o.st"}, {"log", "o.log"}, {"stop", "0"},
        {"resume", NULL}};
    enum { COUNT = sizeof given / sizeof *given };
    char line[2048] = "train", name[64], pair[128];
    size_t n = 0;
    cli_good(cli_run("train --help"));
    const char *train = strstr(cli_out, "\ntrain\n"), *eval = strstr(cli_out, "\neval\n");
    for (const char *p = train; p && (p = strstr(p, "\n  --")) && p < eval; p++) {
        bool known = false;
        check(sscanf(p, " --%63s", name) == 1, "--help: %.40s", p);
        for (int i = 0; i < COUNT; i++)
            known = known || !strcmp(given[i][0], name);
        check(known, "--%s has no test here", name);
    }
    for (int i = 0; i < COUNT; i++)
        if (given[i][1])
            snprintf(line + strlen(line), sizeof line - strlen(line), " --%s %s", given[i][0],
                     given[i][1]);
    cli_good(cli_run("%s", line));
    char *bytes = cli_read("o.st", &n);
    for (int i = 0; bytes && i < COUNT - 5; i++) { // the last five are not saved
        snprintf(pair, sizeof pair, "\"%s\":\"%s\"", given[i][0], given[i][1]);
        check(strstr(bytes + 8, pair) != NULL, "the checkpoint has no %s", pair);
    }
    check(bytes != NULL, "no o.st");
    free(bytes);
    cli_good(cli_run("certify --model o.st --search-steps 2 --seed 3"));
}

// cli_column: the largest number of a column of the log, by its name.
static double cli_column(const char *path, const char *name) {
    size_t n = 0;
    char *log = cli_read(path, &n), *at = log ? strstr(log, name) : NULL;
    double most = -INFINITY;
    int column = 0;
    for (char *p = log; at && p < at; p++)
        column += *p == '\t';
    for (char *row = at ? strchr(at, '\n') : NULL; row && row[1]; row = strchr(row + 1, '\n')) {
        char *p = row + 1;
        for (int i = 0; p && i < column; i++)
            p = strchr(p, '\t') ? strchr(p, '\t') + 1 : NULL;
        most = p ? fmax(most, strtod(p, NULL)) : INFINITY;
    }
    free(log);
    return most;
}

// Both presets keep a budget in every row of the log; without caps the program says so.
static void test_cli_budgets(void) {
    static const char *const presets_tried[] = {"paper", "tight"};
    for (int i = 0; i < 2; i++) {
        cli_good(cli_run("train --data text --width 16 --heads 2 --blocks 1 --context 8 --batch 4 "
                         "--lr 0.5 --steps 60 --eval-every 3 --tokens 9 --preset %s --lipschitz 10 "
                         "--share-embed 50 --share-head 50 --out k.st --log k.log",
                         presets_tried[i]));
        double K = cli_value("certificate"), highest = cli_column("k.log", "certificate\t");
        check(K > 5 && K <= 10 && highest <= 10, "%s: certificate %.9g, highest %.9g, budget 10",
              presets_tried[i], K, highest);
        check(cli_column("k.log", "largest_norm_over_cap") <= 1.005, "%s: %.9g times a cap",
              presets_tried[i], cli_column("k.log", "largest_norm_over_cap"));
        check(!strstr(cli_out, "note\t"), "%s: %s", presets_tried[i], cli_out);
    }
    for (int i = 0; i < 16; i++) { // each optimizer with each constraint that promises to hold
        static const char *const kinds[] = {"soft", "hard", "normalize", "stiefel"};
        cli_good(cli_run("train --data text --width 16 --heads 2 --blocks 1 --context 8 --batch 4 "
                         "--steps 20 --eval-every 2 --tokens 9 --preset %s --lipschitz 10 "
                         "--optimizer %s --lr %g --constraint %s --out k.st --log k.log",
                         presets_tried[i / 8], i % 2 ? "adamw" : "muon", i % 2 ? 0.03 : 0.5,
                         kinds[i / 2 % 4]));
        check(cli_column("k.log", "certificate\t") <= 10 && !strstr(cli_out, "note\t") &&
              cli_column("k.log", "largest_norm_over_cap") <= 1.005, "%s: %.9g, %.9g times a cap",
              kinds[i / 2 % 4], cli_column("k.log", "certificate\t"),
              cli_column("k.log", "largest_norm_over_cap"));
    }
    cli_refuses(2, "cap 1e-30", "train --data text --cap-v 1e-30");
    cli_leaks_matter = false; // gradients near 1e20 are finite, their squares are not
    int status = cli_run("train --data text --width 16 --heads 2 --blocks 3 --context 8 --batch 4 "
                         "--steps 12 --eval-every 1 --sample-every 0 --cap 0 --optimizer adamw "
                         "--lr 10 --out v.st --log v.log");
    cli_leaks_matter = true;
    check(status == 0 || strstr(cli_err, "is not finite"), "status %d: %s", status, cli_err);
    cli_good(cli_run("certify --model v.st --search-steps 0")); // what was saved can be read
    cli_good(cli_run("train --data text " CLI_NET "--steps 3 --tokens 9 --optimizer adamw "
                     "--constraint decay --spectral-decay 0.5 --cap 0 --out k.st --log k.log"));
    double decayed = cli_value("certificate_log10"); // decay needs no cap
    cli_good(cli_run("train --data text " CLI_NET "--steps 3 --tokens 9 --optimizer adamw "
                     "--cap 0 --out k.st --log k.log"));
    check(decayed < cli_value("certificate_log10") - 0.1, "decay without caps: 10^%g, not 10^%g",
          decayed, cli_value("certificate_log10"));
    for (int i = 0; i < 2; i++) { // these promise nothing, and say so
        cli_good(cli_run("train --data text " CLI_NET "--steps 3 --tokens 9 --optimizer adamw "
                         "--constraint %s --out k.st", i ? "hammer" : "decay"));
        check(strstr(cli_out, "note\tnot constrained") && strstr(cli_err, "not constrained"),
              "--constraint: %s", cli_out);
        cli_refuses(2, i ? "hammer" : "decay", "train --data text --lipschitz 9 --constraint %s",
                    i ? "hammer" : "decay");
    }
    cli_good(cli_run("train --data text " CLI_NET "--steps 3 --tokens 9 --cap 0 --out free.st"));
    check(strstr(cli_out, "note\tnot constrained") && strstr(cli_err, "not constrained"),
          "--cap 0: %s",
          cli_out);
    cli_good(cli_run("certify --model free.st --search-steps 0"));
    check(strstr(cli_out, "note\tnot constrained") != NULL, "certify of --cap 0: %s", cli_out);
}

// A run that diverges names step and tensor, stops, and keeps the checkpoint of the step before.
static void test_cli_divergence(void) {
    static const char *const runs[] = {"--blocks 3", "--blocks 4 --plain-residual"};
    for (int i = 0; i < 2; i++) {
        static const char line[] = "train --data text --width 16 --heads 2 --context 8 --batch 4 "
            "--cap 0 --lr 1e6 --steps 20 --eval-every 1 --log d.log %s --out %s --stop %d";
        int step = 0;
        cli_leaks_matter = false;
        int status = cli_run(line, runs[i], "d.st", 20);
        cli_leaks_matter = true;
        const char *message = strstr(cli_err, "lipgpt: step ");
        check(status == 1 && message && !*cli_out && strstr(message, ".weight is not finite") &&
              (strstr(message, "the weight of ") || strstr(message, "the gradient of ")),
              "divergence: status %d: %s", status,
              cli_err);
        check(message && sscanf(message, "lipgpt: step %d", &step) == 1 && step > 1, "step %d",
              step);
        cli_good(cli_run(line, runs[i], "before.st", step - 1));
        check(cli_same("d.st", "before.st"), "the checkpoint is not that of step %d", step - 1);
    }
}

// Places that cannot be written are found out before the first step, not at the first report.
static void test_cli_unwritable(void) {
    static const struct { const char *arguments, *reason; } bad[] = {
        {"--out text/m.st", "text"}, {"--out text/deep/m.st", "text"}, {"--log text/log", "text"},
        {"--out directory", "directory"}, {"--log directory", "directory"}, {"--out=", ""},
        {"--log=", ""}};
    cli_leaks_matter = false;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int status = cli_run("train --data text " CLI_NET "--steps 200 --eval-every 200 %s%s",
                             bad[i].arguments, strstr(bad[i].arguments,
                                                      "--out") ? "" : " --out w.st");
        check((status == 1 || status == 2) && strstr(cli_err, bad[i].reason) && !*cli_out,
              "%s: status %d: %s", bad[i].arguments, status, cli_err);
        check(!strstr(cli_err, "step 200"), "%s was found out after 200 steps", bad[i].arguments);
    }
    cli_leaks_matter = true;
    check(access("text.tmp", F_OK) && access("directory.tmp", F_OK) && access(".tmp", F_OK),
          "a .tmp was left behind");
}

// Two files under one name would cost the user one of them; an old log that cannot be read, too.
static void test_cli_one_file_twice(void) {
    size_t before = 0, after = 0;
    char *text = cli_read("text", &before);
    cli_good(cli_run("train --data text " CLI_NET "--steps 2 --out twice.st --log twice"));
    check(link("text", "alias") == 0 && symlink("loop", "loop") == 0, "cannot make the links");
    cli_refuses(1, "one file", "train --data text " CLI_NET "--steps 2 --out text");
    cli_refuses(1, "one file", "train --data text " CLI_NET "--steps 2 --out alias");
    cli_refuses(1, "one file", "train --data text " CLI_NET "--steps 2 --log text");
    cli_refuses(1, "one file", "train --data text " CLI_NET "--steps 2 --out a.st --log a.st");
    cli_refuses(1, "one file", "train --data text " CLI_NET "--steps 2 --out a.st --log a.st.txt");
    cli_refuses(1, "one file", "certify --model twice.st --search-steps 1 --pair twice.st");
    cli_refuses(1, "one file", "certify --model twice.st --data text --pair text --search-steps 1");
    char *same = cli_read("text", &after);
    check(text && same && before == after && !memcmp(text, same, before), "the text was lost");
    cli_good(cli_run("train --data text " CLI_NET "--steps 4 --stop 2 --out twice.st --log twice"));
    cli_refuses(1, "cannot read loop", "train --resume twice.st --log loop");
    free(text), free(same);
    // a sample replaces what has its name, and writes into nothing
    text = cli_read("other", &before);
    check(link("other", "linked.st.txt") == 0, "cannot make the link");
    cli_good(cli_run("train --data text " CLI_NET "--steps 2 --tokens 9 --out linked.st"));
    same = cli_read("other", &after);
    check(text && same && before == after && !memcmp(text, same, before), "it wrote into a link");
    check(access("linked.st.txt.tmp", F_OK) != 0, "linked.st.txt.tmp was left behind");
    free(text), free(same);
}

// Weights outside of their caps are not trained on: no certificate would hold, and the soft cap
// diverges far outside.
static void test_cli_outside_caps(void) {
    cli_good(cli_run("train --data text " CLI_NET "--steps 4 --stop 2 --cap 1 --out caps.st"));
    size_t size = 0;
    char *bytes = cli_read("caps.st", &size);
    uint64_t header = 0;
    if (bytes) memcpy(&header, bytes, 8);
    float *values = bytes ? (float *)(void *)(bytes + 8 + header) : NULL;
    for (int i = 0; values && i < 1000; i++) values[i] *= 3;
    if (values) cli_write("caps.st", bytes, size);
    cli_refuses(1, "times its cap", "train --resume caps.st --log caps");
    cli_good(cli_run("certify --model caps.st --search-steps 0")); // measuring them is fine
    check(strstr(cli_out, "not constrained") != NULL, "no note on weights outside their caps");
    free(bytes);
}

// A full disk: the old checkpoint stays whole, and results that could not be written are a failure.
static void test_cli_full_disk(void) {
    cli_good(cli_run("train --data text " CLI_NET "--steps 2 --out f.st"));
    cli_good(cli_run("train --data text " CLI_NET "--steps 2 --out g.st"));
    cli_limit = 4096, cli_leaks_matter = false;
    int status = cli_run("train --data text " CLI_NET "--steps 5 --out f.st");
    check(status == 1 && strstr(cli_err, "cannot write f.st"), "full disk: status %d: %s", status,
          cli_err);
    check(cli_same("f.st", "g.st") && access("f.st.tmp", F_OK) != 0,
          "a full disk cost the checkpoint");
    cli_limit = 1100; // (libomp needs 1024 for itself)
    status = cli_run("eval --data text --model f.st");
    check(status == 1 && strstr(cli_err, "cannot write"), "lost results: status %d: %s", status,
          cli_err);
    cli_limit = RLIM_INFINITY, cli_leaks_matter = true;
}

// --- Hostile checkpoints.

static char *cli_model; // a small valid one: 8 bytes of length, header, data
static size_t cli_size, cli_header;

// cli_forge: a file with this header, claimed to be so long, and the model's data.
static void cli_forge(const char *header, size_t size, uint64_t claimed) {
    char *bytes = malloc(8 + size + cli_size);
    memcpy(bytes, &claimed, 8), memcpy(bytes + 8, header, size);
    memcpy(bytes + 8 + size, cli_model + 8 + cli_header, cli_size - 8 - cli_header);
    cli_write("bad.st", bytes, size + cli_size - cli_header);
    free(bytes);
}

// cli_hostile: bad.st must be refused with status 1 and one line.
static void cli_hostile(const char *reason) {
    cli_refuses(1, reason, "certify --search-steps 0 --model bad.st");
}

// cli_edit: forges the header with the first `from` replaced; false if it is not there.
static bool cli_edit(const char *from, const char *to) {
    char header[16384];
    char *at = strstr(cli_model + 8, from);
    if (!at || at >= cli_model + 8 + cli_header)
        return false;
    int n = snprintf(header, sizeof header, "%.*s%s%.*s", (int)(at - cli_model - 8), cli_model + 8,
                     to,
                     (int)(cli_model + 8 + cli_header - at - strlen(from)), at + strlen(from));
    cli_forge(header, (size_t)n, (uint64_t)n);
    return true;
}

// The tiny model of the following tests; two letters, so 2 x 2 matrices everywhere.
static void cli_tiny_model(void) {
    uint64_t length = 0;
    cli_good(cli_run("train --data two " CLI_SMALL "--steps 2 --out small.st"));
    cli_model = cli_read("small.st", &cli_size);
    check(cli_model && cli_size > 8, "no small.st");
    memcpy(&length, cli_model, 8);
    cli_header = (size_t)length;
    check(length % 8 == 0 && length < cli_size && length < 16000, "header of %zu bytes",
          cli_header);
}

// Cut off anywhere, or not a checkpoint at all.
static void test_cli_truncated(void) {
    static const char page[] = "<!DOCTYPE html><html><body>404: not found</body></html>\n";
    static const uint64_t lengths[] = {0, 1, UINT64_MAX, UINT64_MAX - 7, 1ull << 63, 100000001,
                                       99999999};
    for (size_t n = 0; n < cli_size; n += n < 16 || n > 8 + cli_header ? 1 : CLI_STRIDE) {
        cli_write("bad.st", cli_model, n);
        cli_hostile("bad.st");
    }
    for (size_t n = 0; n < cli_header - 8; n += CLI_CUT) { // and with an honest length
        cli_forge(cli_model + 8, n, n);
        cli_hostile(n ? "JSON" : "header");
    }
    cli_write("bad.st", cli_model, cli_size + 1); // cli_read left a 0 there
    cli_hostile("bad.st");
    cli_write("bad.st", page, sizeof page - 1);
    cli_hostile("not a safetensors file");
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        cli_forge(cli_model + 8, cli_header, lengths[i]);
        cli_hostile("header");
    }
    cli_forge(cli_model + 8, cli_header, cli_header - 8); // data begin early
    cli_hostile("bad.st");
}

// One lie at a time in an otherwise valid header.
static void test_cli_lies(void) {
    #define HEAD_OF "\"head.weight\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":["
    static const char *const lies[][3] = {
        {"{\"__meta", "[\"__meta", "{"}, {"{\"__metadata__\"", "{{\"__metadata__\"", "JSON"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"F16\"", "F16"}, {"\"dtype\":\"F32\"", "\"dtype\":32",
                                                            "JSON"},
        {"\"dtype\":\"F32\",", "", "dtype"}, {"\"dtype\"", "\"dtypo\"", "expected e"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"F32\",\"dtype\":\"F32\"", "expected shape"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"F\\n\\u001b[31m16\"", "bad character"},
        {"[2,2],\"data_offsets\":[0,16]", "[2,2],\"data_offsets\":[0,12]", "offsets"},
        {"[2,2],\"data_offsets\":[0,16]", "[2,2],\"data_offsets\":[16,0]", "offsets"},
        {"[2,2],\"data_offsets\":[0,16]", "[2,2],\"data_offsets\":[0]", "expected ,"},
        {"[2,2],\"data_offsets\":[0,16]", "[2,2],\"data_offsets\":[-16,0]", "JSON"},
        {"[2,2],\"data_offsets\":[0,16]", "[2,2],\"data_offsets\":[4,20]", "starts at"},
        {"[2,2],\"data_offsets\":[16,32]", "[2,2],\"data_offsets\":[0,16]", "starts at"},
        // an alias
        {"[2,2],\"data_offsets\":[16,32]", "[2,2],\"data_offsets\":[8,24]", "starts at"},
        // an overlap
        {"[2,2],\"data_offsets\":[0,16]", "[3,2],\"data_offsets\":[0,16]", "offsets"},
        {"[2,2],\"data_offsets\":[0,16]", "[1,4],\"data_offsets\":[0,16]", "1 x 4"},
        {"[2,2],\"data_offsets\":[0,16]", "[4],\"data_offsets\":[0,16]", "expected ,"},
        {"[2,2],\"data_offsets\":[0,16]", "[],\"data_offsets\":[0,16]", "expected a number"},
        {"[2,2],\"data_offsets\":[0,16]", "[2,2,1],\"data_offsets\":[0,16]", "expected ]"},
        {"[2,2],\"data_offsets\":[0,16]", "[4398046511104,4398046511104],\"data_offsets\":[0,16]",
         "overflows"},
        {"[2,2],\"data_offsets\":[0,16]", "[4398046511104,1],\"data_offsets\":[0,16]", "offsets"},
        {"[2,2],\"data_offsets\":[0,16]", "[4611686018427387905,4],\"data_offsets\":[0,16]",
         "overflows"},
        {"[2,2],\"data_offsets\":[0,16]", "[99999999999999999999,1],\"data_offsets\":[0,16]",
         "large"},
        {"[2,2],\"data_offsets\":[0,16]", "[2,2],\"data_offsets\":[0,18446744073709551632]",
         "large"},
        {"\"embedding.weight\"", "\"head.weight\"", "two tensors"},
        {"\"embedding.weight\"", "\"embedding.height\"", "embedding.weight is missing"},
        {"\"embedding.weight\"", "\"\\u0065mbedding.weight\\u0000\"", "JSON"},
        {"\"embedding.weight\":",
         "\"extra\":{\"dtype\":\"F32\",\"shape\":[0,2],\"data_offsets\":[0,0]},"
         "\"embedding.weight\":", "tensors"},
        {"},\"embedding.weight\":", "},\"__metadata__\":{},\"embedding.weight\":",
         "expected \"dtype"},
        {"{\"__metadata__\":", "{\"__metadata__\":{},\"__metadata__\":", "JSON"},
        {"\"width\":\"2\"", "\"width\":\"2\",\"width\":\"2\"", "width"},
        {"\"width\":\"2\"", "\"width\":2", "JSON"}, {"\"width\":\"2\",", "", "width is missing"},
        {"\"width\":\"2\"", "\"width\":\"1e9\"", "width"}, {"\"width\":\"2\"", "\"width\":\"nan\"",
                                                            "width"},
        {"\"width\":\"2\"", "\"width\":\"\"", "width"}, {"\"width\":\"2\"", "\"width\":\"4\"",
                                                         "bad.st"},
        {"\"width\":\"2\"", "\"width\":\"3\"", "odd"}, {"\"heads\":\"1\"", "\"heads\":\"0\"",
                                                        "heads"},
        {"\"heads\":\"1\"", "\"heads\":\"2\"", "odd"}, {"\"blocks\":\"1\"", "\"blocks\":\"2\"",
                                                        "bad.st"},
        {"\"blocks\":\"1\"", "\"blocks\":\"-1\"", "blocks"}, {"\"bias\":\"0\"", "\"bias\":\"1\"",
                                                              "bad.st"},
        {"\"context\":\"2\"", "\"context\":\"65537\"", "context"},
        {"\"activation\":\"gelu\"", "\"activation\":\"relu\"", "activation"},
        {"\"lr\":\"", "\"lr\":\"nan", "lr"}, {"\"lr\":\"", "\"lr\":\"-", "lr"},
        {"\"step\":\"2\"", "\"step\":\"-2\"", "step"}, {"\"step\":\"2\"", "\"step\":\"2x\"",
                                                        "step"},
        {"\"rng\":\"", "\"rng\":\"99999999999999999999", "rng"}, {"lipgpt 2", "lipgpt 9", "format"},
        {"\"vocabulary_size\":\"2\"", "\"vocabulary_size\":\"3\"", "vocabulary"},
        {"\"vocabulary_size\":\"2\"", "\"vocabulary_size\":\"4294967298\"", "vocabulary"},
        {"\"vocabulary\":\"6162\"", "\"vocabulary\":\"616\"", "vocabulary"},
        {"\"vocabulary\":\"6162\"", "\"vocabulary\":\"61zz\"", "vocabulary"},
        {"\"vocabulary\":\"6162\"", "\"vocabulary\":\"6161\"", "vocabulary"},
        {"\"__metadata__\":{", "\"__metadata__\":{\"a\":{},", "JSON"},
        {"\"__metadata__\":{", "\"__metadata__\":{\"a\\q\":\"\",", "JSON"},
        {"\"__metadata__\":{", "\"__metadata__\":{\"a\\u12\":\"\",", "JSON"},
        {"\"__metadata__\":{", "\"__metadata__\":{\"a\nb\":\"\",", "JSON"},
        {"\"__metadata__\":{", "\"__metadata__\":{,", "JSON"}, {"}}", "}},}", "JSON"}, {"}}", "}",
                                                                                        "JSON"},
        {"}}", "}}}", "JSON"}, {"}}", "}\"x", "JSON"}, {"}}", "}\"x\\", "JSON"},
        {HEAD_OF, HEAD_OF "1", "offsets"},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        bool found = cli_edit(lies[i][0], lies[i][1]);
        check(found, "no %s in the header of a checkpoint", lies[i][0]);
        if (found)
            cli_hostile(lies[i][2]);
    }
    char deep[10000];
    memset(deep, '[', sizeof deep);
    memcpy(deep, "{\"a\":", 5);
    cli_forge(deep, sizeof deep, sizeof deep);
    cli_hostile("JSON");
    memset(deep + 5, '{', sizeof deep - 5);
    cli_forge(deep, sizeof deep, sizeof deep);
    cli_hostile("JSON");
    check(cli_edit("}}", "}} \n\t\r "), "no end"); // and one truth: white space is no lie
    cli_good(cli_run("certify --search-steps 0 --model bad.st"));
}

// Weights and momentum must be finite numbers; which one is not is said.
static void test_cli_not_finite(void) {
    static const uint32_t bits[] = {0x7fc00000, 0x7f800000, 0xff800000};
    size_t data = 8 + cli_header, last = cli_size - 4;
    for (int i = 0; i < 6; i++) {
        char *bytes = malloc(cli_size);
        memcpy(bytes, cli_model, cli_size);
        memcpy(bytes + (i < 3 ? data : last), &bits[i % 3], 4);
        cli_write("bad.st", bytes, cli_size);
        cli_hostile(i < 3 ? "tensor embedding.weight has" : "tensor momentum.");
        free(bytes);
    }
}

// Random damage to the header, flips and splices: refused, or harmless; never a crash.
static void test_cli_fuzz(void) {
    uint64_t state = 1;
    int accepted = 0, refused = 0;
    char *header = malloc(cli_header);
    cli_leaks_matter = false;
    for (int i = 0; i < CLI_FUZZ; i++) {
        memcpy(header, cli_model + 8, cli_header);
        for (int edits = 1 + i % 3; edits > 0; edits--) {
            size_t draw[3];
            for (int k = 0; k < 3; k++)
                state = state * 6364136223846793005u + 1442695040888963407u, draw[k] = state >> 33;
            size_t at = draw[0] % cli_header, from = draw[1] % cli_header, n = draw[2] % 12 + 1;
            n = cli_header - (at > from ? at : from) < n ? 1 : n;
            if (i % 2)
                memmove(header + at, header + from, n);
            else
                header[at] = (char)(header[at] ^ 1 << draw[2] % 8);
        }
        cli_forge(header, cli_header, cli_header);
        int status = cli_run("certify --search-steps 0 --model bad.st");
        accepted += status == 0, refused += status == 1;
        if (status == 1)
            cli_refused(status, 1, "");
        else
            check(status == 0 && !*cli_err, "fuzz %d: status %d: %s", i, status, cli_err);
    }
    free(header);
    cli_leaks_matter = true;
    check(accepted > 0 && refused > CLI_FUZZ / 2, "fuzz: %d accepted, %d refused", accepted,
          refused);
}

// --- prepare_data.py, a copy of it, so that its data/ is the tests' own. What a server sends comes
// from addresses that need no network. Only the right text's arrival is not tested here: that would
// take the text.
#define NOWHERE "--url file:///no/such/text"
static int cli_python(const char *arguments) {
    const char *program = binary;
    binary = "/usr/bin/env";
    int status = cli_run("python3 %s", arguments);
    binary = program;
    return status;
}

static void cli_prepare(int wanted, const char *arguments, const char *out, const char *err) {
    char script[256];
    snprintf(script, sizeof script, "prepare_data.py %s", arguments);
    int status = cli_python(script);
    check(status == wanted, "status %d, not %d: %s: %.300s", status, wanted, cli_line, cli_err);
    check(!strcmp(cli_out, out), "stdout \"%s\", not \"%s\": %s", cli_out, out, cli_line);
    for (char *p = cli_err; *p; p++)
        *p = *p == '\n' ? ' ' : *p; // a box breaks its lines where it must
    check(strstr(cli_err, err) != NULL, "no \"%s\": %s: %.300s", err, cli_line, cli_err);
}

static void test_cli_prepare_data(const char *here) {
    char path[2048];
    size_t size = 0, left = 0;
    snprintf(path, sizeof path, "%s/prepare_data.py", here);
    char *script = cli_read(path, &size);
    if (!script || cli_python("--version") != 0) {
        printf("prepare_data.py is not tested: %s\n", script ? "no python3" : "it is not here");
        free(script);
        return;
    }
    cli_write("prepare_data.py", script, size), cli_write("empty", "", 0);
    cli_prepare(0, "--input text", "data/text\n", "copied text to data/text, 59");
    check(cli_same("text", "data/text"), "--input changed the text");
    cli_prepare(0, "--input data/text", "data/text\n", "already in place");
    cli_prepare(0, "--input text --output a/b/c", "a/b/c\n", "copied text to a/b/c");
    check(cli_same("text", "a/b/c"), "--output changed the text");
    cli_prepare(1, "--input empty", "", "empty is empty");
    cli_prepare(1, "--input nowhere", "", "cannot read nowhere");
    cli_prepare(2, "--input text --fallback", "", "not allowed with");
    cli_prepare(2, "--colour red", "", "--colour");
    // nothing else is ever stored as tinyshakespeare, under whatever name
    cli_prepare(1, "--input text --output data/tinyshakespeare.txt", "", "is not tinyshakespeare");
    check(symlink("tinyshakespeare.txt", "data/link") == 0, "no symbolic link");
    cli_prepare(1, "--input text --output data/link", "", "is not tinyshakespeare");
    cli_prepare(1, "--url data:,dream", "", "is not tinyshakespeare: it has 5 bytes");
    cli_prepare(1, NOWHERE, "", "could not download file:///no/such/text");
    cli_prepare(1, "--url nonsense", "", "could not download nonsense");
    check(access("data/tinyshakespeare.txt", F_OK) != 0, "another text became Shakespeare");
    cli_write("data/tinyshakespeare.txt", "mine", 4);
    cli_prepare(1, NOWHERE, "", "is there but is not tinyshakespeare: it has 4 bytes");
    char *mine = cli_read("data/tinyshakespeare.txt", &left);
    check(mine && left == 4, "a failed download took the file that was there");
    cli_prepare(0, NOWHERE " --fallback", "data/fallback.txt\n", "THIS IS NOT SHAKESPEARE");
    check(cli_same("prepare_data.py", "data/fallback.txt"), "the fallback is not the files here");
    cli_write("wall", "", 0);
    cli_prepare(1, "--input text --output wall/text", "", "cannot write wall/text");
    DIR *directory = opendir("data");
    for (struct dirent *d; directory && (d = readdir(directory));)
        check(!strstr(d->d_name, ".tmp"), "left behind: %s", d->d_name);
    if (directory)
        closedir(directory);
    free(script), free(mine);
    cli_remove("data"), cli_remove("a"), cli_remove("wall");
}

static void test_cli(void) {
    char here[1024] = "", directory[] = "build/cli-XXXXXX";
    static char absolute[2048];
    const char *threads = getenv("OMP_NUM_THREADS");
    char old[16] = "";
    bool ready = getcwd(here, sizeof here) && mkdtemp(directory) && chdir(directory) == 0;
    snprintf(old, sizeof old, "%s", threads ? threads : "");
    snprintf(absolute, sizeof absolute, "%s%s%s", *binary == '/' ? "" : here,
             *binary == '/' ? "" : "/",
             binary);
    binary = absolute;
    check(ready && access(binary, X_OK) == 0, "no binary %s", binary);
    if (!ready || access(binary, X_OK) != 0)
        return;
    setenv("OMP_NUM_THREADS", "1", 1);
    cli_texts();
    test_cli_arguments(), test_cli_smallest_budget(), test_cli_data(), test_cli_outputs();
    test_cli_sample(), test_cli_resume(), test_cli_interrupt(), test_cli_options();
    test_cli_budgets(), test_cli_divergence(), test_cli_unwritable(), test_cli_full_disk();
    test_cli_one_file_twice(), test_cli_outside_caps(), test_cli_prepare_data(here);
    cli_tiny_model();
    if (cli_model && cli_header > 0)
        test_cli_truncated(), test_cli_lies(), test_cli_not_finite(), test_cli_fuzz();
    free(cli_model);
    if (*old)
        setenv("OMP_NUM_THREADS", old, 1);
    else
        unsetenv("OMP_NUM_THREADS");
    check(chdir(here) == 0, "cannot go back to %s", here);
    cli_remove(directory);
}
#endif

// ------------------------------------------------------------------------------------------------

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); } tests[] = {
        {"rng", test_rng}, {"matmul", test_matmul}, {"exp", test_exp}, {"gelu", test_gelu},
        {"gradients", test_gradients}, {"activations", test_activations}, {"softmax", test_softmax},
        {"rope", test_rope}, {"attention", test_attention},
        {"model gradients", test_model_gradients}, {"causality", test_causality},
        {"orthogonalize", test_orthogonalize}, {"coupling", test_coupling},
        {"soft cap", test_soft_cap}, {"cap after a step", test_cap_after_step},
        {"constraints", test_constraints}, {"adamw", test_adamw},
        {"init", test_init}, {"optimizer step", test_optimizer_step},
        {"paper's bound", test_paper_bound}, {"sound bound", test_sound_bound},
        {"norms", test_norms}, {"spectral norm", test_spectral_norm}, {"overfit", test_overfit},
        {"determinism", test_determinism},
        {"certificate from below", test_certificate_from_below},
        {"attention is tight", test_attention_is_tight},
        {"paper bound is exceeded", test_paper_bound_is_exceeded},
        {"layers are tight", test_layers_are_tight},
        {"radius counts", test_radius_counts},
        {"spectral bracket", test_spectral_bracket},
        {"compose is monotone", test_compose_is_monotone},
        {"slices", test_slices},
        {"compose at the ends", test_compose_at_the_ends},
        {"budget", test_budget},
        {"budget after every step", test_budget_after_every_step},
        {"certified predictions", test_certified_predictions},
        {"show bound", test_show_bound},
    };
    verbose = getenv("VERBOSE") != NULL;
    Config c = tiny(PAPER);
    the_model = model_create(&c);
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        double begin = seconds();
        tests[i].run();
        if (verbose)
            printf("%s: %.2f s\n", tests[i].name, seconds() - begin);
    }
    model_free(the_model);
#ifndef TEST_DOUBLE
    if (argc > 1)
        binary = argv[1], test_cli();
#endif
    (void)argc, (void)argv;
    printf("%s: %d passed, %d failed\n", DOUBLE ? "double" : "float", passed, failed);
    return failed != 0;
}
