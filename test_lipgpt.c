// Tests of lipgpt.c, dev/search.c and dev/mlp.c, included whole. Compiled twice: as they are, and
// with -DLIPGPT_DOUBLE, where every float is a double, so that gradients check to 1e-8 and one
// wrong term cannot hide. The exit status tells whether anything failed.
//
//   test-float ./lipgpt build/search    VERBOSE=1 prints every value measured beside its limit
//
// Limits are relative; the value seen when they were chosen stands beside them (float, double).
// Order: gradients, matrices, layers, optimizer, caps, the certificate; then files and commands, by
// running the two programs that are named (float only).

#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#ifdef __clang__ // libm's exp, in the double build, stays a scalar call
#pragma clang diagnostic ignored "-Wpass-failed"
#endif
#define MLP_MAIN mlp_main
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>
static const char *volatile unfinished; // lipgpt.c's
static bool named_first = true;         // a temporary is named there before it is there

static FILE *watched_fopen(const char *path, const char *mode) {
    if (*mode == 'w' && mode[1] == 'x') named_first &= path == unfinished && access(path, F_OK);
    return fopen(path, mode);
}
#define fopen watched_fopen
#include "dev/mlp.c" // and dev/search.c
#undef fopen
#ifdef LIPGPT_DOUBLE
#define GOLDEN_FOR_TESTS
#include "dev/golden.c"
#endif

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined __SANITIZE_ADDRESS__ || __has_feature(address_sanitizer)
// Sanitizers are slow: a tenth of the random cases, fewer models and fewer damaged files.
enum { THIN = 10, MODELS = 60, FUZZ = 150, STRIDE = 40, CUT = 17 };
#else
enum { THIN = 1, MODELS = 240, FUZZ = 400, STRIDE = 1, CUT = 3 };
#endif
enum { DOUBLE = sizeof(float) == 8 };
#define LENGTH(table) (sizeof(table) / sizeof *(table))
#define EACH(t, m) for (Tensor *t = (m)->tensors; t < (m)->tensors + (m)->count; t++)

// ------------------------------------------------------------------------------------------------
// Harness: checks, random matrices of known singular values, small models.

static int passed, failed;
static bool verbose; // VERBOSE=1
static char arguments[4096], output[1 << 16], errors[1 << 16]; // of the last program that was run

__attribute__((format(printf, 2, 3)))
static void check(bool good, const char *format, ...) {
    va_list list;
    va_start(list, format);
    *(good ? &passed : &failed) += 1;
    if (!good) printf("FAILED: "), vprintf(format, list), printf("\n");
    if (!good && *arguments) printf("  lipgpt %s: %.300s%.300s\n", arguments, output, errors);
    va_end(list);
}

// expect: a condition that is its own explanation. at_most: the shape of most checks; a NaN fails.
#define expect(...) check((__VA_ARGS__), "line %d: %s", __LINE__, #__VA_ARGS__)

static void at_most(double value, double limit, const char *what) {
    if (verbose) printf("  %-60s %12.7g of %.7g\n", what, value, limit);
    check(value <= limit, "%s: %.9g, at most %.9g", what, value, limit);
}

static void near(double value, double wanted, double relative, const char *what) {
    if (verbose) printf("  %-60s %10.3g of %.3g\n", what, fabs(value / wanted - 1), relative);
    check(fabs(value - wanted) <= relative * fabs(wanted), "%s: %.12g, wanted %.12g within %.2g",
          what, value, wanted, relative);
}

static double worse(double a, double b) { return b > a || isnan(b) ? b : a; } // NaN is worst
static const double epsilon = DOUBLE ? 0x1p-53 : 0x1p-24; // half a unit in the last place of 1

static void randomize(float *x, size_t n, double size, Rng *rng) {
    for (size_t i = 0; i < n; i++) x[i] = (float)(size * rng_normal(rng));
}

static double between(double low, double high, Rng *rng) { // log-uniform
    return low * pow(high / low, rng_uniform(rng));
}

static double dot(const float *x, const float *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

static double distance(const float *x, const float *y, size_t n) { // |x - y|; y NULL: of zero
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += square((double)x[i] - (y ? (double)y[i] : 0));
    return sqrt(sum);
}

static int falling(const void *a, const void *b) {
    return (*(const double *)a < *(const double *)b) - (*(const double *)a > *(const double *)b);
}

// singular_values: of W (rows, cols), largest first; returns their number. One-sided Jacobi in
// double: the rows of the wide one of W and W^T are rotated in pairs until orthogonal; their norms
// are the values.
static int singular_values(double *sigma, const float *W, int rows, int cols) {
    int n = imin(rows, cols), k = rows + cols - n;
    double *a = doubles((size_t)n * k), total = 0;
    for (int i = 0; i < rows * cols; i++) {
        a[rows < cols ? i : i % cols * k + i / cols] = (double)W[i];
        total += square((double)W[i]);
    }
    for (int sweep = 0, turned = 1; sweep < 60 && turned && isfinite(total); sweep++)
        for (int i = turned = 0; i < n; i++)
            for (int j = i + 1; j < n; j++) {
                double *x = a + i * k, *y = a + j * k, xx = 0, yy = 0, xy = 0;
                #pragma omp simd reduction(+ : xx, yy, xy)
                for (int p = 0; p < k; p++)
                    xx += x[p] * x[p], yy += y[p] * y[p], xy += x[p] * y[p];
                double size = sqrt(xx) * sqrt(yy), zeta = (yy - xx) / (2 * xy);
                if (size <= 1e-30 * total || fabs(xy) <= 1e-14 * size) continue;
                double t = (zeta < 0 ? -1 : 1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
                double c = 1 / sqrt(1 + t * t), s = c * t;
                for (int p = turned = 0; p < k; p++) {
                    double first = x[p];
                    x[p] = c * first - s * y[p], y[p] = s * first + c * y[p];
                }
                turned = 1;
            }
    for (int i = 0; i < n; i++) {
        sigma[i] = total - total; // NaN if anything is
        for (int p = 0; p < k; p++) sigma[i] += square(a[i * k + p]);
        sigma[i] = sqrt(sigma[i]);
    }
    qsort(sigma, (size_t)n, sizeof *sigma, falling);
    free(a);
    return n;
}

static double unit_of(int rows, int cols) { return sqrt((double)rows / cols); } // of RMS->RMS norms

static double norm_by_jacobi(const float *W, int rows, int cols) { // RMS->RMS
    double sigma[512];
    singular_values(sigma, W, rows, cols);
    return sigma[0] / unit_of(rows, cols);
}

// with_singular_values: W (rows, cols) = P diag(sigma) Q, P and Q products of random reflections.
static void with_singular_values(float *W, int rows, int cols, const double *sigma, Rng *rng) {
    double *a = doubles((size_t)rows * cols), *v = doubles((size_t)(rows + cols));
    for (int i = 0; i < imin(rows, cols); i++) a[i * cols + i] = sigma[i];
    for (int reflection = 0; reflection < 12; reflection++) {
        bool left = reflection % 2;
        int n = left ? rows : cols, others = left ? cols : rows;
        int along = left ? cols : 1, across = left ? 1 : cols;
        double size = 0;
        for (int i = 0; i < n; i++) v[i] = rng_normal(rng), size += square(v[i]);
        for (int j = 0; j < others; j++) {
            double *x = a + j * across, sum = 0;
            for (int i = 0; i < n; i++) sum += v[i] * x[i * along];
            for (int i = 0; i < n; i++) x[i * along] -= 2 * sum / size * v[i];
        }
    }
    for (int i = 0; i < rows * cols; i++) W[i] = (float)a[i];
    free(a), free(v);
}

static double norm_now(const float *w, int rows, int cols) { // RMS->RMS, from below
    return spectral_norm(w, rows, cols, NULL).lower / unit_of(rows, cols);
}

static void set_norm(float *w, int rows, int cols, double norm) {
    scale_by(w, (size_t)rows * cols, norm / max(norm_now(w, rows, cols), 1e-300));
}

typedef enum { GAUSSIAN, ORTHOGONAL, RANK_ONE, ONE_HEAD, OPTIMISED, FAMILIES } Family;

// fill_matrix: W (rows, cols) of a family and with this RMS->RMS norm.
static void fill_matrix(float *w, int rows, int cols, Family family, double norm, Rng *rng) {
    double sigma[512] = {0};
    for (int i = 0; i < imin(rows, cols) && (family != RANK_ONE || i == 0); i++)
        sigma[i] = norm * unit_of(rows, cols);
    if (family != GAUSSIAN) with_singular_values(w, rows, cols, sigma, rng);
    else randomize(w, (size_t)rows * cols, 1, rng), set_norm(w, rows, cols, norm);
}

static void fill_rows(float *w, int rows, int cols, double norm, Rng *rng) { // RMS norm of each
    size_t n = (size_t)cols;
    randomize(w, (size_t)rows * n, 1, rng);
    for (int r = 0; r < rows; r++, w += n) scale_by(w, n, norm / rms(w, n));
}

// Sizes of the small network: T tokens of at most CONTEXT, I inputs and O outputs of a layer.
enum { T = 7, I = 6, O = 5, H = 3, D = 12, CONTEXT = 10, POOL = 1024 };
// Kinds of network: the presets, and four more.
enum { BIASED = PAPER + 1, SUM, CONCATENATED, POSITIONAL, VARIANTS };

// small: a preset made small, without its budget.
static Config small(Preset preset, int d, int H, int L, int V) {
    Config c = preset_config(preset);
    if (preset == TIGHT) { // but for the residual, which CONCATENATED and POSITIONAL have
        c.residual = CONVEX, c.alpha = 0.5, c.attention_blocks = 0, c.value_ratio = 1;
        c.cap_v = 0.9, c.cap_in = c.cap_out = 2.1;
    }
    c.width = d, c.heads = H, c.blocks = L, c.context = CONTEXT, c.vocabulary = V;
    c.batch = c.lanes = 1, c.lipschitz = 0;
    if (c.alpha == 0) c.alpha = 0.5 / L;
    return c;
}

// bare: tight without biases and slices, the hidden layer as wide as the stream.
static Config bare(int d, int H, int L, int V) {
    Config c = small(TIGHT, d, H, L, V);
    c.mlp_ratio = 1, c.bias = c.position_bias = c.per_head = 0;
    return c;
}

// tiny: a small network of each kind.
static Config tiny(int variant) {
    Config c = small(variant == TIGHT ? TIGHT : PAPER, D, H, 2, 11);
    c.mlp_ratio = 2;
    if (variant == BIASED) c.activation = MAXMIN, c.bias = 1, c.softmax_scale = 2, c.alpha = 0.3;
    if (variant == BIASED) c.margin = 0.75;
    if (variant == SUM) c.residual = PLAIN, c.position_bias = 1;
    if (variant == CONCATENATED) c.residual = CONCAT, c.per_head = c.bias = 1, c.value_ratio = 2;
    if (variant == POSITIONAL) {
        c.residual = CONCAT, c.value_ratio = 2, c.attention_blocks = 1, c.attention_factor = 1;
        c.position_only = c.position_bias = c.bias = c.per_head = 1;
    }
    return c;
}

static void set_caps(Config *c, double matrices, double rows) { // 0: off
    c->cap_qk = c->cap_v = c->cap_o = c->cap_in = c->cap_out = c->cap_head = matrices;
    c->cap_embed = c->cap_bias = rows;
}

// Lab: a model with a workspace for every thread, and its certificate.
typedef struct { Model *m; Workspace *s; Certificate certificate; } Lab;

// take, lab_create: what a test takes is given back when it ends.
static Lab open_labs[400];
static void *taken[400];
static int lab_count, taken_count;

static void *take(size_t count, size_t size) {
    return taken[taken_count++] = allocate(count, size);
}

static Lab lab_create(const Config *c) {
    Model *m = model_create(c);
    Workspace *spaces = workspaces_create(c, omp_get_max_threads());
    return open_labs[lab_count++] = (Lab){.m = m, .s = spaces};
}

static void give_back(void) {
    while (taken_count > 0) free(taken[--taken_count]);
    while (lab_count > 0) {
        Lab *lab = &open_labs[--lab_count];
        workspaces_free(lab->s, &lab->m->config, omp_get_max_threads());
        model_free(lab->m);
    }
}

// fill_model: every weight of a family with a norm from low to high; ONE_HEAD: q, k, v live in head
// 0. With low 0 every slice, and every row of the others, has its cap, or 3 if it has none.
static void fill_model(Lab *lab, Family family, double low, double high, Rng *rng) {
    int H = lab->m->config.heads;
    EACH(t, lab->m) {
        double norm = low > 0 ? between(low, high, rng) : t->cap > 0 ? t->cap : 3;
        int slices = low > 0 || !t->size ? 1 : t->slices, rows = t->rows / slices;
        float *w = lab->m->weights + t->offset;
        bool one = family == ONE_HEAD && has_heads(t->kind) && slices == 1;
        if (!is_matrix(t->kind)) fill_rows(w, t->rows, t->cols, norm, rng);
        if (one) memset(w, 0, t->size * sizeof *w);
        if (one) fill_matrix(w, rows / H, t->cols, ORTHOGONAL, norm * sqrt(H), rng);
        for (int p = 0; p < slices && is_matrix(t->kind) && !one; p++, w += rows * t->cols)
            fill_matrix(w, rows, t->cols, family, norm, rng);
    }
}

static Lab random_lab(const Config *c, uint64_t seed) { // weights of norm 2 and more everywhere
    Lab lab = lab_create(c);
    Rng rng = {seed};
    EACH(t, lab.m) {
        double norm = t->kind == W_Q || t->kind == W_K ? 3 : 1; // scores that matter
        double size = is_matrix(t->kind) ? norm / sqrt(t->cols) : 1;
        randomize(lab.m->weights + t->offset, t->size, size, &rng);
    }
    return lab;
}

// ------------------------------------------------------------------------------------------------
// Gradients: of every layer, then of the whole network. The loss of a layer is sum_i C_i Y_i for
// random C, so dY = C. Slopes are differences of fourth order; an error is |difference| over
// |gradient|, of the whole tensor.
static float X[POOL], W[POOL], B[POOL], Y[POOL], C[POOL], P[POOL];
static float dX[POOL], dW[POOL], dB[POOL], dY[POOL]; // dY: C, for gradients made in place
static const uint16_t ids[] = {3, 1, 4, 1, 0, 3, 2, 0};
static const double difference_step = DOUBLE ? 3e-4 : 0.05, layer_limit = DOUBLE ? 1e-8 : 2e-3;
static Activation phi;
static float *position_bias; // B or NULL
static int score_columns, value_columns, own_columns; // qk, n, S
static Lab the;              // network whose loss is meant

static void check_gradient(double (*loss)(void), float *x, const float *gradient, size_t n,
                           double limit, const char *what) {
    double difference = 0, size = 0, f[5], h = difference_step;
    for (size_t i = 0; i < n; i += n > 60 ? THIN : 1) {
        float kept = x[i];
        for (int k = -2; k <= 2; k++) x[i] = kept + (float)(k * h), f[k + 2] = loss();
        x[i] = kept;
        double slope = (8 * (f[3] - f[1]) - (f[4] - f[0])) / (12 * h);
        difference += square(slope - (double)gradient[i]), size += square((double)gradient[i]);
    }
    check(size > 1e-8, "%s: the gradient is zero", what);
    at_most(sqrt(difference / size), limit, what);
}

// fresh: random X, W, B, P, C; gradients at 1: a backward that sets instead of adding shows.
static void fresh(uint64_t seed) {
    Rng rng = {seed};
    float *random[] = {X, W, B, P, C}, *gradients[] = {dX, dW, dB};
    for (int i = 0; i < 5; i++) randomize(random[i], POOL, 1, &rng);
    for (int i = 0; i < 3 * POOL; i++) gradients[i / POOL][i % POOL] = 1;
    memcpy(dY, C, sizeof dY);
}

static float *minus_one(float *gradient) { // what was added to a gradient since fresh
    for (int i = 0; i < POOL; i++) gradient[i] -= 1;
    return gradient;
}

// The losses of layers, as functions of X, W, B and P.
static double embedding_loss(void) { return embedding_forward(Y, W, ids, T, D), dot(C, Y, T * D); }
static double linear_loss(void) { return linear_forward(Y, X, W, B, T, I, O), dot(C, Y, T * O); }
static double residual_loss(void) {
    residual_forward(Y, X, P, W, 0.7, 0.4, T, own_columns, I, D);
    return dot(C, Y, T * D);
}
static double rope_loss(void) {
    memcpy(Y, X, sizeof Y), rope(Y, the.m->angles, 1, T, 3 * D, D, H);
    return dot(C, Y, T * 3 * D);
}
static double attention_loss(void) {
    attention_forward(Y, W, X, position_bias, 0.6, CONTEXT, T, score_columns, value_columns, H);
    return dot(C, Y, T * value_columns);
}
static double activation_loss(void) {
    return activation_forward(Y, X, phi, T, I), dot(C, Y, T * I);
}
static double entropy_loss(void) {
    int correct = 0;
    return memcpy(Y, X, sizeof Y), cross_entropy_forward(Y, ids, &correct, T, O) / 3;
}

static void test_layer_gradients(void) {
    fresh(1);
    embedding_backward(dW, C, ids, T, D);
    check_gradient(embedding_loss, W, minus_one(dW), 5 * D, layer_limit, "embedding: dE");
    fresh(2);
    linear_backward(dX, dW, dB, C, X, W, T, I, O);
    check_gradient(linear_loss, X, minus_one(dX), T * I, layer_limit, "linear: dx");
    check_gradient(linear_loss, W, minus_one(dW), O * I, layer_limit, "linear: dW");
    check_gradient(linear_loss, B, minus_one(dB), O, layer_limit, "linear: db");
    for (int i = 0; i < 2; i++) {
        own_columns = i * D;
        fresh(3);
        residual_backward(dY, dB, dW, Y, X, P, W, 0.7, 0.4, T, own_columns, I, D);
        check_gradient(residual_loss, X, dY, T * D, layer_limit, "residual: dx");
        check_gradient(residual_loss, P, dB, T * I, layer_limit, "residual: dh");
        check_gradient(residual_loss, W, minus_one(dW), D * (own_columns + I), layer_limit,
                       "residual: dW");
    }
    fresh(4);
    rope(dY, the.m->angles, -1, T, 3 * D, D, H);
    check_gradient(rope_loss, X, dY, T * 3 * D, layer_limit, "rope: dqkv");
    for (int i = 0; i < 4; i++) { // with q and k and without, values as wide as them or wider
        bool biased = i > 0;
        score_columns = i < 3 ? D : 0, value_columns = i < 2 ? D : 2 * D;
        fresh(5 + (uint64_t)biased);
        position_bias = biased ? B : NULL;
        attention_loss(); // leaves A in W
        memset(Y, 0, sizeof Y);
        attention_backward(dX, Y, biased ? dB : NULL, C, W, X, 0.6, CONTEXT, T, score_columns,
                           value_columns, H);
        check_gradient(attention_loss, X, dX, T * (2 * score_columns + value_columns), layer_limit,
                       "attention: dqkv");
        if (!biased) continue;
        check_gradient(attention_loss, B, minus_one(dB), H * CONTEXT, layer_limit, "attention: db");
    }
    for (int i = 0; i < 2; i++) {
        phi = i ? MAXMIN : GELU;
        fresh(7);
        for (int j = 0; j < T * I && !DOUBLE; j++) // no kink of max within two steps
            X[j] = (float)(floor(4 * (double)X[j]) + 0.5) / 2 + (j % I < I / 2 ? 0.125f : 0);
        activation_backward(dY, X, phi, T, I);
        check_gradient(activation_loss, X, dY, T * I, layer_limit, i ? "MAXMIN: dz" : "GELU: dz");
    }
    fresh(8);
    entropy_loss(), cross_entropy_backward(Y, ids, 3, T, O);
    memcpy(dX, Y, sizeof dX);
    check_gradient(entropy_loss, X, dX, T * O, layer_limit, "cross entropy: dlogits");
}

static double sequence_mean(void) { // of a margin only a loss with its gradient knows
    int correct = 0;
    float *unread = the.m->config.margin > 0 ? calloc(the.m->size, sizeof *unread) : NULL;
    double loss = sequence_loss(the.m, the.s, ids, ids + 1, T, unread, T, &correct);
    return free(unread), loss / T;
}

static double loss_from_x(void) {
    int correct = 0;
    run(the.m, the.s, X, T);
    for (int t = 0; t < T; t++)
        the.s->logits[t * the.m->config.vocabulary + ids[t + 1]] -= (float)the.m->config.margin;
    return cross_entropy_forward(the.s->logits, ids + 1, &correct, T, the.m->config.vocabulary) / T;
}

// Every tensor's gradient of the whole network, and that of its input, for every kind of network.
static void test_model_gradients(void) {
    double limit = DOUBLE ? 1e-8 : 1e-2; // 1.5e-3, 3e-9: W_q of the last block
    for (int variant = 0; variant < VARIANTS; variant++) {
        if (!DOUBLE && variant != PAPER) continue; // max has kinks
        Config c = tiny(variant);
        the = random_lab(&c, 20 + (uint64_t)variant);
        float *w = the.m->weights, *g = take(the.m->size, sizeof *g);
        int correct = 0;
        sequence_loss(the.m, the.s, ids, ids + 1, T, g, T, &correct);
        memcpy(dX, the.s->dx, sizeof(float) * T * D);
        EACH(t, the.m) {
            float *x = w + t->offset, *dx = g + t->offset;
            if (t->size) check_gradient(sequence_mean, x, dx, t->size, limit, t->name);
        }
        embedding_forward(X, values(the.m, w, EMBED, 0), ids, T, D);
        check_gradient(loss_from_x, X, dX, T * D, limit, "gradient of the embeddings, s->dx");
    }
}

// A margin makes what is trained on harder, and leaves what is reported as it is.
static void test_margin(void) {
    Config c = tiny(BIASED);
    the = random_lab(&c, 29);
    float *g = take(the.m->size, sizeof *g);
    double losses[2][2]; // by margin, by whether there is a gradient
    for (int i = 0; i < 4; i++) {
        int correct = 0;
        the.m->config.margin = i / 2 * 0.75;
        losses[i / 2][i % 2] =
            sequence_loss(the.m, the.s, ids, ids + 1, T, i % 2 ? g : NULL, T, &correct);
    }
    double harder = losses[1][1] - losses[0][1];
    expect(losses[0][0] == losses[0][1] && losses[0][0] == losses[1][0]);
    expect(harder > 0 && harder < 0.75 * T);
}

// Head and loss go by parts of a long window: the same bits as in one go.
static void test_head_by_parts(void) {
    enum { LONG = 2 * LOGIT_ROWS + 88, SYMBOLS = 131 };
    for (int variant = 0; variant < 2; variant++) {
        Config c = small(variant ? TIGHT : PAPER, 12, 2, 1, SYMBOLS);
        c.context = LONG;
        Lab lab = random_lab(&c, 30 + (uint64_t)variant);
        Model *m = lab.m;
        uint16_t tokens[LONG + 1];
        Rng rng = {31};
        for (int t = 0; t <= LONG; t++) tokens[t] = (uint16_t)rng_below(&rng, SYMBOLS);
        float *parts = take(m->size, sizeof *parts), *whole = take(m->size, sizeof *whole);
        float *logits = take((size_t)LONG * SYMBOLS, sizeof *logits), *w = m->weights;
        int right[2] = {0};
        double loss = sequence_loss(m, lab.s, tokens, tokens + 1, LONG, parts, 7, &right[0]);
        near(sequence_loss(m, lab.s, tokens, tokens + 1, LONG, NULL, 7, &right[1]), loss, 0, "");
        expect(right[0] == right[1]), right[1] = 0;
        linear_forward(logits, lab.s->last, values(m, w, W_HEAD, 0), values(m, w, B_OUT, 0), LONG,
                       c.width, SYMBOLS);
        near(cross_entropy_forward(logits, tokens + 1, &right[1], LONG, SYMBOLS), loss, 1e-14,
             "loss by parts"); // its sum is grouped otherwise
        expect(right[0] == right[1] && right[0] > 0);
        cross_entropy_backward(logits, tokens + 1, 7, LONG, SYMBOLS);
        memset(lab.s->dx, 0, sizeof(float) * LONG * (size_t)c.width);
        linear_backward(lab.s->dx, values(m, whole, W_HEAD, 0), values(m, whole, B_OUT, 0), logits,
                        lab.s->last, values(m, w, W_HEAD, 0), LONG, c.width, SYMBOLS);
        backward(m, lab.s, whole, LONG);
        embedding_backward(values(m, whole, EMBED, 0), lab.s->dx, tokens, LONG, c.width);
        expect(!memcmp(parts, whole, m->size * sizeof(float)));
    }
}

// ------------------------------------------------------------------------------------------------
// Random numbers, matrices, spectral norms

// The generator is splitmix64: its published first outputs, and draws in range.
static void test_rng(void) {
    static const uint64_t first[] = {0xe220a8397b1dcdafu, 0x6e789e6aa1b965f4u, 0x06c45d188009454fu};
    Rng rng = {0};
    double sum = 0, sum2 = 0, sum4 = 0;
    for (int i = 0; i < 3; i++) expect(rng_next(&rng) == first[i]);
    for (int i = 0; i < 100000; i++) {
        size_t n = 1 + (size_t)i % 1000, below = rng_below(&rng, n);
        double uniform = rng_uniform(&rng), x = rng_normal(&rng);
        expect(below < n && uniform >= 0 && uniform < 1);
        sum += x, sum2 += x * x, sum4 += x * x * x * x;
    }
    at_most(fabs(sum / 1e5), 0.01, "mean of normals");     // 0.0034
    near(sum2 / 1e5, 1, 0.02, "variance of normals");      // 0.0054
    near(sum4 / 1e5, 3, 0.05, "fourth moment of normals"); // 0.011
}

// reference_matmul: out (rows, cols) = scale A B (plus C, if add), summed in long double. Of the
// triangles, see Triangle: nothing of A that counts as zero is read, and of LOWER_OUT nothing above
// the diagonal is made.
static void reference_matmul(double *out, Mat c, Mat a, Mat b, double scale, bool add,
                             Triangle kind) {
    for (int i = 0; i < c.rows; i++)
        for (int j = 0; j < (kind == LOWER_OUT ? i + 1 : c.cols); j++) {
            long double sum = 0;
            for (int k = 0; k < a.cols; k++) {
                bool zero = (kind == LOWER_LEFT && k > i) || (kind == UPPER_LEFT && k < i);
                if (!zero) sum += (long double)*at(a, i, k) * (long double)*at(b, k, j);
            }
            out[(size_t)i * c.cols + j] =
                (double)(scale * sum + (add ? (long double)*at(c, i, j) : 0));
        }
}

// matmul_error: one product against the reference, NaN in the ignored triangle and around C. All
// terms of a sum have one sign, so that their sum is what rounding may be measured by.
static double matmul_error(int m, int n, int depth, Triangle triangle, int kind, Rng *rng) {
    double scale = kind & 1 ? 1 : rng_normal(rng), worst = 0;
    bool add = kind >> 1 & 1, flip_a = kind >> 4 & 1, flip_b = kind >> 5 & 1;
    int pad = kind >> 2 & 3, M = m + pad, N = n + pad, K = depth + pad;
    size_t used_a = (size_t)M * K, used_b = (size_t)K * N, used_c = (size_t)m * N;
    float *A = floats(used_a), *B = floats(used_b), *C = floats(used_c);
    double *wanted = doubles((size_t)m * n);
    for (size_t i = 0; i < used_a; i++) A[i] = (float)rng_uniform(rng);
    for (size_t i = 0; i < used_b; i++) B[i] = (float)rng_uniform(rng);
    for (size_t i = 0; i < used_c; i++)
        C[i] = (float)(i % (size_t)N < (size_t)n && add ? copysign(rng_uniform(rng), scale) : NAN);
    Mat a = part(flip_a ? transposed(mat(A, K, M)) : mat(A, M, K), 0, 0, m, depth);
    Mat b = part(flip_b ? transposed(mat(B, N, K)) : mat(B, K, N), 0, 0, depth, n);
    Mat c = part(mat(C, m, N), 0, 0, m, n);
    for (int i = 0; i < m; i++)
        for (int k = 0; k < depth; k++)
            if ((triangle == LOWER_LEFT && k > i) || (triangle == UPPER_LEFT && k < i))
                *at(a, i, k) = (float)NAN;
    reference_matmul(wanted, c, a, b, scale, add, triangle);
    matmul(c, a, b, (float)scale, add, triangle);
    for (int i = 0; i < m; i++) {
        for (int j = n; j < N; j++) worst = isnan(C[i * N + j]) ? worst : INFINITY; // beside it
        for (int j = 0; j < (triangle == LOWER_OUT ? imin(i + 1, n) : n); j++)
            worst = worse(worst, fabs((double)*at(c, i, j) / wanted[i * n + j] - 1));
    }
    free(A), free(B), free(C), free(wanted);
    return worst;
}

// Sizes around the blocking (256 deep, 512 wide), all triangles; then small ones in every layout.
static void test_matmul(void) {
    static const struct { int m, n, depth; Triangle triangle; } large[] = {
        {13, 511, 255, FULL}, {25, 513, 257, FULL}, {7, 1030, 600, FULL}, {530, 530, 12, LOWER_OUT},
        {65, 65, 520, LOWER_OUT}, {300, 30, 300, LOWER_LEFT}, {530, 14, 530, LOWER_LEFT},
        {300, 30, 300, UPPER_LEFT}, {530, 14, 530, UPPER_LEFT}};
    Rng rng = {1};
    double worst = 0;
    for (int i = 0; i < 36; i++) {
        int m = large[i / 4].m, n = large[i / 4].n, depth = large[i / 4].depth;
        int kind = i / 4 % 4 + i % 4 * 21;
        worst = worse(worst, matmul_error(m, n, depth, large[i / 4].triangle, kind, &rng) / 2);
    }
    for (int trial = 0, kind = 0; trial < 8000 / THIN; trial++, kind = (kind + 37) % 64) {
        Triangle triangle = (Triangle)(trial % 4);
        int m = 1 + (int)rng_below(&rng, 40), n = 1 + (int)rng_below(&rng, 70);
        int depth = triangle >= LOWER_LEFT ? m : 1 + (int)rng_below(&rng, 40);
        n = triangle == LOWER_OUT ? m : n;
        worst = worse(worst, matmul_error(m, n, depth, triangle, kind, &rng));
    }
    at_most(worst / epsilon, 10, "matmul: relative error / eps, of large ones half");
}

// fast_exp against libm: accuracy on its range, clamped outside, NaN kept.
static void test_exp(void) {
#ifndef LIPGPT_DOUBLE
    double worst = 0;
    for (uint32_t bits = 0; bits < 0x42ae0001u; bits += 211 * THIN) { // every 211th one in [0, 87]
        float x;
        memcpy(&x, &bits, sizeof x);
        worst = worse(worst, fabs(fast_exp(x) / exp(x) - 1));
        worst = worse(worst, fabs(fast_exp(-x) / exp(-x) - 1));
    }
    at_most(worst, 1e-7, "fast_exp, relative error"); // 7.9e-8 over all floats
    volatile float most = 87, infinite = INFINITY; // or compilers fold, without fused multiply-adds
    float top = fast_exp(most), bottom = fast_exp(-most);
    for (float x = 87; x < 1e38f; x *= 1.5f) expect(fast_exp(x) == top && fast_exp(-x) == bottom);
    expect(fast_exp(infinite) == top && fast_exp(-infinite) == bottom);
    expect(bottom > 0 && isfinite(top) && fast_exp(0) == 1);
#endif
    expect(isnan(fast_exp((float)NAN)));
}

// check_bracket: lower <= sigma <= upper, and as narrow as Gram iteration promises from above.
static void check_bracket(const float *w, int rows, int cols, double sigma, double slack) {
    Bracket b = spectral_norm(w, rows, cols, NULL);
    double wide = pow(imin(rows, cols), ldexp(1, -14)) * (1 + 1e-8);
    check(b.lower <= sigma * (1 + slack) && sigma <= b.upper * (1 + slack) &&
          b.upper <= sigma * wide * (1 + slack) && b.lower >= 0.999 * sigma,
          "spectral_norm (%d, %d): %.17g <= %.17g <= %.17g", rows, cols, b.lower, sigma, b.upper);
}

// spectral_norm against Jacobi: shapes, condition numbers (infinity: rank one), scales, random
// numbers, a cluster at the top, zero, NaN and infinity.
static void test_spectral_norm(void) {
    static const int shapes[][2] = {{1, 1}, {1, 7}, {9, 1}, {2, 2}, {3, 5}, {8, 8}, {13, 4},
                                    {16, 31}, {33, 33}, {24, 100}, {65, 40}, {128, 96}, {150, 150}};
    static const double conditions[] = {1, 1.0001, 1.01, 100, 1e8, INFINITY};
    static const double scales[] = {1, 1e-30, 1e30};
    float *w = floats(512 * 512);
    double sigma[512];
    Rng rng = {90};
    for (int i = 0; i < (THIN > 1 ? 11 : 13); i++)
        for (int k = 0; k < 21; k++) {
            int rows = shapes[i][0], cols = shapes[i][1], n = imin(rows, cols), kind = k % 7;
            if (n > 64 && kind % 5 != 0) continue;
            for (int j = 0; j < n && kind < 6; j++)
                sigma[j] = scales[k / 7] * pow(conditions[kind], -(double)j / max(n - 1, 1));
            if (kind < 6) with_singular_values(w, rows, cols, sigma, &rng);
            else randomize(w, (size_t)rows * cols, scales[k / 7], &rng);
            singular_values(sigma, w, rows, cols);
            check_bracket(w, rows, cols, sigma[0], 0);
        }
    int wide = THIN > 1 ? 64 : 512;
    for (int i = 0; i < 512; i++) sigma[i] = i < 40 ? 3 : 1e-3 * (512 - i); // a cluster at the top
    with_singular_values(w, 512, wide, sigma, &rng);
    check_bracket(w, 512, wide, 3, 2 * epsilon); // rounding W to float moves sigma
    for (int i = 0; i < 2; i++) {
        w[77] = (float)(i ? NAN : -INFINITY);
        expect(spectral_norm(w, 64, 80, NULL).upper == INFINITY);
    }
    for (int exponent = -170; exponent < -40 && DOUBLE; exponent++) { // what no float can hold, too
        double size = pow(10, exponent), top = exponent % 2 ? size : 4 * size;
        for (int i = 0; i < 64; i++) // (4, 16), diagonal or constant
            w[i] = (float)(exponent % 2 ? i % 17 == 0 : 0.5) * (float)size;
        Bracket norm = spectral_norm(w, 4, 16, NULL);
        expect(norm.lower <= top * (1 + 1e-12) && top <= norm.upper);
    }
    memset(w, 0, 512 * sizeof(float));
    Bracket zero = spectral_norm(w, 16, 32, NULL);
    expect(zero.lower == 0 && zero.upper == 0);
    free(w);
}

// orthogonalize: never above 1, whatever comes: any scale and spread, zeros among the values, rank
// one third; and where all values are at least 0.002 of |X|_F, in the published band, with the
// singular vectors kept.
static void test_orthogonalize(void) {
    double above = 0, least = INFINITY, sigma[128], before[128];
    int cases = 0;
    Rng rng = {41};
    for (int trial = 0; trial < 10000 / THIN + 40; trial++) {
        bool large = trial >= 10000 / THIN, zero = trial % 50 == 0 && !large;
        int n = large ? 25 + trial % 4 * 25 : 1 + (int)rng_below(&rng, 12);
        int k = large ? n + trial % 3 * 14 : n + (int)rng_below(&rng, (size_t)(17 - n));
        double scale = pow(10, 30 * (trial % 3) - 30), nuclear = 0, frobenius = 0;
        double lowest = trial % 4 ? 1e-6 : 0.1;
        for (int i = 0; i < n; i++) {
            bool none = trial % 8 == 3 ? i % 3 : trial % 2 && i % 3 == 1;
            before[i] = none || zero ? 0 : scale * between(lowest, 1, &rng);
            nuclear += before[i], frobenius += square(before[i]);
        }
        float *input = floats((size_t)(n * k));
        Scratch s = scratch_create(n, k);
        with_singular_values(input, n, k, before, &rng);
        memcpy(s.x, input, (size_t)(n * k) * sizeof(float));
        orthogonalize(&s);
        singular_values(sigma, s.x, n, k);
        above = worse(above, sigma[0]);
        if (zero) expect(sigma[0] == 0);
        qsort(before, (size_t)n, sizeof *before, falling);
        if (before[n - 1] > 0.002 * sqrt(frobenius)) { // <M, U V^T> is the nuclear norm
            double inner = dot(input, s.x, (size_t)(n * k));
            near(inner / nuclear, 0.99745, 0.00196, "<M, orth M> / nuclear norm");
            least = min(least, sigma[n - 1]), cases++;
        }
        free(input), scratch_free(&s);
    }
    expect(cases >= 2000 / THIN);
    at_most(above, 0.9994, "orthogonalize: largest singular value, any input");
    at_most(0.9955, least, "orthogonalize: 0.9955 and the smallest singular value");
}

// ------------------------------------------------------------------------------------------------
// Layers, beyond their gradients

static double gelu_at(double x) {
    float z = (float)x, a;
    activation_forward(&a, &z, GELU, 1, 1);
    return (double)a;
}

static double gelu_slope_at(double x) {
    float z = (float)x, dz = 1;
    activation_backward(&dz, &z, GELU, 1, 1);
    return (double)dz;
}

// GELU: the largest slope, on which the certificate rests, values, and |phi(z)| <= |z| / 1.1289.
// Its backward is the slope of its own forward, point by point: a constant that is a little
// different in the two would hide in a sum. (In float, differences are too coarse to tell.)
static void test_gelu(void) {
    double steepest = 0, implemented = 0, apart = 0, worst = 0, largest = 0;
    double r = sqrt(2 / acos(-1)), h = difference_step;
    for (double x = -6; x < 6 && DOUBLE; x += 0.1) {
        double one = gelu_at(x + h) - gelu_at(x - h), two = gelu_at(x + 2 * h) - gelu_at(x - 2 * h);
        apart = worse(apart, fabs(gelu_slope_at(x) / ((8 * one - two) / (12 * h)) - 1));
    }
    for (double x = 1.3; x < 1.6; x += 1e-6 * THIN) {
        double t = tanh(r * (x + 0.044715 * x * x * x));
        double slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * r * (1 + 3 * 0.044715 * x * x);
        steepest = worse(steepest, slope), implemented = worse(implemented, gelu_slope_at(x));
    }
    for (double x = -12; x < 12; x += 1e-5 * THIN) {
        double y = (double)(float)x, exact = 0.5 * y * (1 + tanh(r * (y + 0.044715 * y * y * y)));
        double made = gelu_at(y) * GELU_DIVISOR;
        worst = worse(worst, fabs(made - exact) / (fabs(y) + 1e-30));
        largest = worse(largest, fabs(made) / (fabs(y) + 1e-30));
    }
    at_most(apart, 1e-10, "GELU: slope against its forward's differences"); // 6e-12
    at_most(steepest, GELU_SLOPE, "slope of GELU");
    near(steepest, GELU_SLOPE, 1e-7, "slope of GELU is GELU_SLOPE"); // 3e-8
    at_most(implemented * GELU_DIVISOR, GELU_SLOPE * (1 + 8 * epsilon), "slope as implemented");
    at_most(worst, DOUBLE ? 1e-7 : 4e-7, "GELU against libm's tanh, relative to |z|");
    at_most(largest, 1 + 4 * epsilon, "|GELU(z)| / |z|");
}

// MaxMin in its own words: max and min of pairs, which keep every token's RMS norm.
static void test_maxmin(void) {
    fresh(9);
    activation_forward(Y, X, MAXMIN, T, I);
    for (const float *z = X, *a = Y; z < X + T * I; z += I, a += I) {
        for (int i = 0; i < I / 2; i++)
            expect(a[i] == (float)fmax(z[i], z[i + 3]) && a[i + 3] == (float)fmin(z[i], z[i + 3]));
        near(rms(a, I), rms(z, I), 1e-15, "MaxMin keeps the norm");
    }
}

// Softmax: sums to 1, ignores a common shift, survives large scores; cross entropy counts.
static void test_softmax(void) {
    float x[70], shifted[70];
    double worst = 0;
    Rng rng = {10};
    for (int n = 1; n <= 70; n++) {
        double sum = 0, exact = 0;
        for (int i = 0; i < n; i++) {
            x[i] = (float)(floor(3 * 64 * rng_normal(&rng)) / 64), shifted[i] = x[i] + 512;
            exact += exp((double)x[i]);
        }
        double lse = softmax(x, n), moved = softmax(shifted, n) - 512;
        worst = worse(worst, fabs(lse - log(exact)) / (1 + fabs(lse)));
        worst = worse(worst, fabs(moved - lse) / 512);
        for (int i = 0; i < n; i++) {
            sum += (double)x[i];
            worst = worse(worst, fabs((double)x[i] / (double)shifted[i] - 1));
        }
        worst = worse(worst, fabs(sum - 1));
    }
    at_most(worst, 8 * epsilon, "softmax: sum, shift and log sum exp");
    fresh(11);
    int correct = 0, wanted = 0;
    for (int t = 0; t < T; t++) {
        int best = 0;
        for (int v = 0; v < O; v++) best = X[t * O + v] > X[t * O + best] ? v : best;
        wanted += best == ids[t];
    }
    cross_entropy_forward(X, ids, &correct, T, O);
    expect(correct == wanted && wanted > 0);
}

// draw: the first token whose sum of probabilities passes a number from [0, 1): of two equal ones,
// the first below 1/2, the second from 1/2 on. The states are what makes rng_uniform say so.
static void test_draw(void) {
    static const uint64_t states[] = {0xd4f88b4067761bdu, 0x2fedf1efce1d5545u};
    for (int i = 0; i < 2; i++) {
        Rng rng = {states[i]}, again = rng;
        float logits[] = {3, 3};
        expect(rng_uniform(&rng) == (i ? 0.5 : 0.5 - 0x1p-53));
        expect(draw(logits, 2, 1, &again) == i);
    }
}

// rotated: what rope makes of number i of a head at position t: the halves are paired.
static double rotated(const float *head, int i, int t) {
    int half = D / H / 2, k = i % half;
    double angle = t * pow(10000, -k / (double)half), c = cos(angle), s = sin(angle);
    double low = (double)head[k], high = (double)head[k + half];
    return i < half ? c * low - s * high : c * high + s * low;
}

// Rope and attention against their definitions in double loops, with and without position bias,
// T < context.
static void test_attention(void) {
    enum { DH = D / H, ROW = 3 * D };
    double turned = 0, worst = 0;
    for (int biased = 0; biased < 2; biased++) {
        fresh(13);
        memcpy(P, X, sizeof P);
        rope(X, the.m->angles, 1, T, ROW, D, H);
        attention_forward(Y, W, X, biased ? B : NULL, 0.6, CONTEXT, T, D, D, H);
        for (int h = 0; h < H; h++)
            for (int i = 0; i < T; i++) {
                double p[T], sum = 0;
                const float *q = P + i * ROW + h * DH;
                for (int j = 0; j <= i; j++) {
                    double score = biased ? (double)B[h * CONTEXT + i - j] : 0;
                    for (int e = 0; e < DH; e++)
                        score += 0.6 * rotated(q, e, i) * rotated(P + j * ROW + D + h * DH, e, j);
                    sum += p[j] = exp(score);
                }
                for (int e = 0; e < DH; e++) {
                    const float *now = X + i * ROW + h * DH + e;
                    double out = 0;
                    for (int j = 0; j <= i; j++)
                        out += p[j] / sum * (double)P[j * ROW + 2 * D + h * DH + e];
                    worst = worse(worst, fabs(out - (double)Y[i * D + h * DH + e]));
                    turned = worse(turned, fabs(rotated(q, e, i) - (double)now[0]));
                    turned = worse(turned, fabs(rotated(q + D, e, i) - (double)now[D]));
                    expect(now[2 * D] == q[2 * D + e]); // v is left alone
                }
            }
    }
    at_most(turned, 20 * epsilon, "rope against its definition");
    at_most(worst, 40 * epsilon, "attention against double loops");
}

// Causality: a token changes nothing before it, and a shorter sequence is a prefix of a longer one.
static void test_causality(void) {
    enum { V = 11, N = CONTEXT * V };
    for (int variant = 0; variant < VARIANTS; variant++) {
        Config c = tiny(variant);
        Lab lab = random_lab(&c, 30 + (uint64_t)variant);
        uint16_t tokens[CONTEXT] = {5, 3, 8, 1, 10, 0, 2, 2, 7, 9};
        float logits[N];
        forward_tokens(lab.m, lab.s, tokens, CONTEXT), logits_forward(lab.m, lab.s, 0, CONTEXT);
        memcpy(logits, lab.s->logits, sizeof logits);
        for (int t = 0; t < CONTEXT; t++) {
            uint16_t kept = tokens[t];
            size_t past = (size_t)t * V, rest = N - past;
            double size = distance(logits + past, NULL, rest);
            tokens[t] = 4;
            forward_tokens(lab.m, lab.s, tokens, CONTEXT), logits_forward(lab.m, lab.s, 0, CONTEXT);
            expect(!memcmp(logits, lab.s->logits, past * sizeof(float))); // but it changes the rest
            expect(distance(logits + past, lab.s->logits + past, rest) > 1e-2 * size);
            tokens[t] = kept;
            forward_tokens(lab.m, lab.s, tokens, t + 1), logits_forward(lab.m, lab.s, 0, t + 1);
            at_most(distance(logits, lab.s->logits, past + V), 40 * epsilon * size, "prefix");
        }
    }
}

// ------------------------------------------------------------------------------------------------
// Initialization and the optimizer

// The preset "paper" has the published constants, in the network that it makes, too.
static void test_presets(void) {
    Config c = preset_config(PAPER), tight = preset_config(TIGHT);
    const double caps[] = {c.cap_qk, c.cap_v, c.cap_o, c.cap_in, c.cap_out, c.cap_head};
    for (int i = 0; i < 6; i++) expect(caps[i] == 1.2);
    c.alpha = 0.5 / c.blocks;
    near(attention_alpha_of(&c), (double)(float)(1.0 / 18), 1e-15, "paper: alpha / 3, L = 3");
    near(keep_of(&c), (double)(float)(5.0 / 6), 1e-15, "paper: 1 - alpha");
    expect(c.activation == GELU && c.cap_embed == 1 && c.softmax_scale == 1 && c.mass == 32);
    expect(!c.bias && !c.position_bias && !c.per_head && !c.residual && c.lipschitz == 0);
    expect(c.value_ratio == 1 && !c.attention_blocks && !c.position_only);
    expect(is_constrained(&c) && is_constrained(&tight) && tight.lipschitz == 100);

    // The paper's of 145M parameters: its bounds at the caps and at caps of 16 (the sound ones, of
    // 331.47 and 315.22 in log10, pass any double); offsets past 2^32 of networks that are planned,
    // not made.
    const char *value[OPTIONS] = {NULL};
    for (int i = 0; i < OPTIONS; i++)
        if (options[i].offset == AT(preset)) value[i] = "145m";
    Config large = new_settings(value);
    expect(large.width == 768 && large.heads == 6 && large.blocks == 12 && large.context == 1024);
    expect(large.vocabulary == 50304 && large.batch * large.context == 1 << 19);
    expect(is_constrained(&large) && large.lanes == 2);
    static const struct { double cap, head, s, wanted; } bounds[] = {
        {1, 8, 1, 1}, {16, 16, 1, 273}, {16, 16, 0.04419417382415922, 257}}; // sqrt(128)/256
    for (int i = 0; i < 3; i++) {
        Model m = {.config = large};
        m.config.softmax_scale = bounds[i].s;
        model_plan(&m);
        expect(m.size == 2 * (size_t)50304 * 768 + 12 * 12 * (size_t)768 * 768);
        EACH(t, &m) {
            t->norm.upper = t->kind == W_HEAD ? bounds[i].head : bounds[i].cap;
            if (t->kind == EMBED) t->norm.upper = 1;
            for (int h = 0; h < m.config.heads && has_heads(t->kind); h++)
                t->heads[h].upper = t->norm.upper * sqrt(m.config.heads);
        }
        Certificate k;
        compose(&m, 1, &k), paper_bound(&m, &k);
        expect(isfinite(k.log10_sound) && k.log10_sound > k.log10_paper);
        if (i == 0) expect(k.log10_paper <= log10(10));
        else near(k.log10_paper, bounds[i].wanted, 1e-3, "log10 of paper_bound"); // 273.22, 256.97
        if (verbose) printf("145m: %.2f, sound %.2f\n", k.log10_paper, k.log10_sound);
        free(m.tensors), free(m.brackets);
    }
    Model huge = {.config = large};
    huge.config.width = 1 << 16, huge.config.vocabulary = 1 << 16;
    model_plan(&huge);
    size_t square_of = (size_t)1 << 32; // numbers of a matrix of that width
    expect(huge.size == square_of * (2 + 12 * 12));
    expect(tensor(&huge, W_HEAD, 0)->offset == square_of * (1 + 12 * 12));
    expect(tensor(&huge, W_IN, 11)->offset == square_of * (1 + 11 * 12 + 4));
    expect(tensor(&huge, W_IN, 11)->size == 4 * square_of);
    free(huge.tensors), free(huge.brackets);
}

// model_init: slices of q, k, v, in at norm min(1, cap), rows of E at min(1, cap), position biases
// at the digits of a distance, the rest zero; concatenated, out and o are drawn, too, and digits
// begin with 1. The matrices are square, wide and tall.
static void test_init(void) {
    static const int sizes[][2] = {{64, 4}, {64, 32}, {2, 1}}; // width: one pass of orthogonalize
    for (int trial = 0; trial < 8; trial++) {                  // alone would not do for 64; heads
        Config c = tiny(trial < 6 ? trial % 2 : trial % 2 ? POSITIONAL : CONCATENATED);
        bool concat = c.residual == CONCAT;
        c.width = sizes[trial / 2 % 3][0], c.heads = sizes[trial / 2 % 3][1], c.cap_embed = 0.8;
        if (trial / 2) c.cap_qk = c.cap_in = 0.3;
        Model *m = model_create(&c);
        Rng rng = {60};
        model_init(m, &rng);
        EACH(t, m) {
            int rows = t->size ? t->rows / t->slices : 0, cols = t->cols;
            double wanted = t->cap > 0 ? min(1, t->cap) : 1, unit = unit_of(rows, cols), sigma[64];
            float *w = m->weights + t->offset;
            bool matrix = has_heads(t->kind) || t->kind == W_IN;
            if (concat && (t->kind == W_O || t->kind == W_OUT)) matrix = true;
            if (!t->size) continue;
            for (int j = 0; j < (int)t->size && !matrix && t->kind != EMBED; j++) {
                int h = j / cols, distance = j % cols; // head h of block l looks h H^l back
                double back = (h + concat) * pow(c.heads + concat, t->block);
                bool first = t->kind == POSITION && distance == back;
                expect(w[j] == (float)(first ? POSITION_START : 0));
            }
            for (int r = 0; r < rows && t->kind == EMBED; r++)
                near(rms(w + r * cols, (size_t)cols), wanted, 1e-6, "init: row of E"); // 4e-8
            for (int p = 0; matrix && p < t->slices; p++) {
                int n = singular_values(sigma, w + p * rows * cols, rows, cols);
                at_most(sigma[0] / unit, wanted, "init: largest singular value");
                near(sigma[n - 1] / unit, wanted, 0.005, "init: smallest singular value"); // 0.0044
            }
        }
        model_free(m);
    }
}

// check_matrix_step: each slice moved by u in RMS->RMS norm (orthogonalize leaves 0.9955 .. 0.9994
// of it), down the momentum.
static void check_matrix_step(const Tensor *t, const float *moved, const float *momentum,
                              double u) {
    size_t size = t->size / (size_t)t->slices;
    for (size_t at = t->offset; at < t->offset + t->size; at += size) {
        double norm = norm_by_jacobi(moved + at, t->rows / t->slices, t->cols);
        at_most(norm, 0.9994 * u, t->name), at_most(0.9955 * u, norm, t->name);
        expect(dot(moved + at, momentum + at, size) > 0);
    }
}

// check_rows_step: against w - u m / max(1/16, |m|) for E and w - u sign(m) for biases, then scaled
// back onto the cap.
static void check_rows_step(const Tensor *t, const float *old, const float *now,
                            const float *momentum, double u, double cap) {
    double error = 0;
    size_t n = (size_t)t->cols;
    for (size_t at = t->offset; at < t->offset + t->size; at += n) {
        double wanted[64], sum = 0, step = u / max(1.0 / 16, rms(momentum + at, n));
        for (size_t j = 0; j < n; j++) {
            double m = (double)momentum[at + j];
            wanted[j] = (double)old[at + j] - (t->kind == EMBED ? step * m : copysign(u, m));
            sum += square(wanted[j]) / t->cols;
        }
        double back = cap > 0 && sqrt(sum) > cap ? cap / sqrt(sum) : 1;
        for (size_t j = 0; j < n; j++)
            error = worse(error, fabs((double)now[at + j] - back * wanted[j]));
        if (cap > 0) at_most(rms(now + at, n), cap * (1 + 2 * epsilon), "rows within their cap");
    }
    at_most(error, 20 * epsilon, "step of rows"); // 4 eps
}

// One optimizer step by hand: momentum, rows with floor and cap, matrices slice by slice, with a
// weight decay of 3: W (1 - lambda u), and none of rows.
static void test_optimizer_step(void) {
    for (int variant = 0; variant <= PAPER; variant++) {
        Config c = tiny(variant);
        set_caps(&c, 100, 0.25), c.cap_embed = 0.8; // those of matrices are far away
        c.weight_decay = 3;
        Lab lab = random_lab(&c, 70);
        Model *m = lab.m;
        size_t n = m->size;
        float *old = take(n, sizeof *old), *g = take(n, sizeof *g);
        float *moved = take(n, sizeof *moved);
        double *mean = take(n, sizeof *mean), error = 0;
        double eta = 0.1, body = 32.0 / 34, end = 1.0 / 34;
        const double shares[KINDS] = {
            [EMBED] = end * c.share_embed, [W_Q] = body, [W_K] = body, [W_V] = body,
            [POSITION] = 0.1, [W_O] = body / 3, [W_IN] = body / 3, [B_IN] = 0.1,
            [W_OUT] = body / 3, [W_HEAD] = end * c.share_head, [B_OUT] = 0.1};
        const double caps[KINDS] = {[EMBED] = 0.8, [B_IN] = 0.25};
        Rng rng = {71};
        randomize(g, n, 1, &rng), randomize(m->momentum, n, 1, &rng);
        scale_by(g, 5 * D, 1e-3), scale_by(m->momentum, 5 * D, 1e-3); // rows of E below the floor
        memcpy(old, m->weights, n * sizeof(float));
        for (size_t j = 0; j < n; j++) mean[j] = 0.9 * (double)m->momentum[j] + 0.1 * (double)g[j];
        optimizer_step(m, g, eta);
        for (size_t j = 0; j < n; j++) error = worse(error, fabs((double)m->momentum[j] - mean[j]));
        at_most(error, 10 * epsilon, "momentum = 0.9 momentum + 0.1 gradient"); // 4 eps
        EACH(t, m) {
            double u = eta * shares[t->kind];
            bool by_head = c.per_head && (t->kind == W_Q || t->kind == W_K || t->kind == W_V);
            if (!t->size) continue;
            expect(t->slices == (by_head ? H : 1));
            for (size_t j = t->offset; j < t->offset + t->size; j++)
                moved[j] = (float)((1 - 3 * u) * (double)old[j] - (double)m->weights[j]);
            if (is_matrix(t->kind)) check_matrix_step(t, moved, m->momentum, u);
            else check_rows_step(t, old, m->weights, m->momentum, u, caps[t->kind]);
        }
    }
}

// Every tensor gets the cap of its own option.
static void test_caps_of_kinds(void) {
    Config c = tiny(TIGHT);
    c.cap_qk = 1, c.cap_v = 2, c.cap_o = 3, c.cap_in = 4, c.cap_out = 5, c.cap_head = 6;
    c.cap_embed = 7, c.cap_bias = 8;
    static const double caps[KINDS] = {[EMBED] = 7, [W_Q] = 1, [W_K] = 1, [W_V] = 2, [W_O] = 3,
                                       [W_IN] = 4, [B_IN] = 8, [W_OUT] = 5, [W_HEAD] = 6};
    Lab lab = lab_create(&c);
    EACH(t, lab.m) check(!t->size || t->cap == caps[t->kind], "%s: cap %g", t->name, t->cap);
}

// The headline run's steps, which grow eightfold from block to block.
static void test_share_growth(void) {
    Config c = tiny(PAPER);
    c.blocks = 3, c.mass = 30, c.share_growth = 8;
    Model *m = model_create(&c);
    const double mlp[] = {1 / 1228.8, 1 / 153.6, 1 / 19.2}; // 30/32 / 18, / 8, / 64, backwards
    near(tensor(m, EMBED, 0)->share, 1 / (32 * 512.0), 1e-15, "share of E");
    near(tensor(m, W_HEAD, 0)->share, 1 / 32.0, 1e-15, "share of W_head");
    for (int l = 0; l < 3; l++)
        for (int kind = W_Q; kind <= W_OUT; kind++)
            if (is_matrix(kind))
                near(tensor(m, kind, l)->share, kind < W_IN ? mlp[l] / 2 : mlp[l], 1e-15, "share");
    model_free(m);
}

// Two steps of AdamW against its equations, in double; no caps.
static void test_adamw(void) {
    Config c = tiny(TIGHT);
    set_caps(&c, 0, 0), c.optimizer = ADAMW, c.weight_decay = 0.1;
    Lab lab = random_lab(&c, 72);
    size_t n = lab.m->size;
    float *g = take(n, sizeof *g);
    double *w = take(n, sizeof *w), *mean = take(n, sizeof *mean);
    double *square_mean = take(n, sizeof *square_mean), error = 0, eta = 0.01;
    Rng rng = {73};
    for (size_t i = 0; i < n; i++) w[i] = (double)lab.m->weights[i];
    for (int step = 0; step < 2; step++) {
        randomize(g, n, 1e-3, &rng);
        optimizer_step(lab.m, g, eta);
        for (size_t i = 0; i < n; i++) {
            mean[i] = 0.9 * mean[i] + 0.1 * (double)g[i];
            square_mean[i] = 0.95 * square_mean[i] + 0.05 * square((double)g[i]);
            w[i] = (1 - 0.1 * eta) * w[i] - eta * mean[i] / (sqrt(square_mean[i]) + 1e-8);
            error = worse(error, fabs((double)lab.m->weights[i] - w[i]));
        }
    }
    at_most(error, 20 * epsilon, "two steps of AdamW"); // 2 eps
}

// The mean loss of four fixed windows after some hundred steps, all caps off. Windows begin with
// different tokens, then comes anything. On the way, loss and gradient of a batch in lanes are the
// sums over its windows. (That threads change no bit is seen in whole runs: see test_resume.)
static void test_overfit(void) {
    enum { WINDOW = CONTEXT + 1, STEPS = 400 };
    for (int variant = 0; variant <= PAPER; variant++) {
        Config c = tiny(variant);
        set_caps(&c, 0, 0), c.batch = 4, c.lanes = 3, c.share_embed = 20, c.share_head = 20;
        Lab lab = lab_create(&c);
        size_t n = lab.m->size;
        float *lanes = take(3 * n, sizeof *lanes), *sum = take(n, sizeof *sum);
        uint16_t text[4 * WINDOW];
        const uint16_t *windows[] = {text, text + WINDOW, text + 2 * WINDOW, text + 3 * WINDOW};
        Rng rng = {100};
        for (size_t i = 0; i < 4 * WINDOW; i++)
            text[i] = (uint16_t)(i % WINDOW ? rng_below(&rng, 11) : i / WINDOW);
        model_init(lab.m, &rng);
        double loss = batch_gradient(lab.m, lab.s, windows, lanes);
        near(loss, log(11), 1e-6, "loss before training is log V");
        for (int step = 0; step < STEPS; step++) {
            optimizer_step(lab.m, lanes, 0.06 * (1 - (double)step / STEPS));
            loss = batch_gradient(lab.m, lab.s, windows, lanes);
            double serial = 0;
            for (int i = 0, correct = 0; i < 4 && step == 5; i++)
                serial += sequence_loss(lab.m, lab.s, windows[i], windows[i] + 1, CONTEXT, sum,
                                        4 * CONTEXT, &correct);
            if (step != 5) continue;
            near(loss, serial / (4 * CONTEXT), 1e-14, "batch loss: mean over windows");
            at_most(distance(sum, lanes, n) / distance(sum, NULL, n), 4 * epsilon, "sum");
        }
        at_most(loss, 0.1, "loss after overfitting");
    }
}

// ------------------------------------------------------------------------------------------------
// Caps and constraints

// soft_cap_strength solves the coupling with the smallest a, and vanishes with the step like
// sqrt(u / 3w) / w^2.
static void test_coupling(void) {
    for (double w = 0.2; w < 5; w *= 1.7) {
        for (double u = 0.3 * w; u > 1e-4 * w; u /= 3) {
            double k = w + u, a = soft_cap_strength(k, w), b = 0.99 * a;
            double x = k - a * k * k * k, z = k - b * k * k * k;
            near(x + a * x * x * x, w, 1e-14, "coupling: k ends at w");
            expect(z + b * z * z * z > w); // no smaller a would do
        }
        double u = 1e-10 * w;
        near(soft_cap_strength(w + u, w) * w * w, sqrt(u / (3 * w)), 1e-4, "coupling: a tiny step");
    }
}

// soft_cap on single numbers (1 x 1 matrices): whatever is below the top ends below the cap, order
// is kept, and what is below a tenth of the cap moves by less than 1 %.
static void test_soft_cap(void) {
    Scratch s = scratch_create(1, 1);
    double worst = 0, moved = 0, turned = 0, w = 1.7;
    for (double excess = 1e-6; excess < 20; excess *= 1.3) {
        double top = w * (1 + excess), last = 0;
        for (int i = 0; i <= 2000 / THIN; i++) {
            double x = top * i * THIN / 2000;
            s.x[0] = (float)x;
            soft_cap(&s, top, w);
            double y = (double)s.x[0];
            worst = worse(worst, y / w), turned = worse(turned, (last - y) / w), last = y;
            if (x > 0 && x <= w / 10) moved = worse(moved, fabs(y / x - 1));
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
        double unit = unit_of(rows, cols), most = trial % 5 ? trial % 4 ? 1 : 4 : 0;
        float weight[256], momentum[256];
        c.weight_decay = most * rng_uniform(&rng) / u;
        for (int i = 0; i < 16; i++)
            sigma[i] = w * unit * (i % 4 == 0 ? 1 : i % 4 == 1 ? 1e-3 : rng_uniform(&rng));
        with_singular_values(weight, rows, cols, sigma, &rng);
        randomize(momentum, 256, between(1e-8, 1e3, &rng), &rng);
        for (int i = 0; i < rows * cols && trial % 3; i++)
            momentum[i] = trial % 3 == 1 ? -weight[i] : weight[i];
        step_matrix(&c, weight, momentum, rows, cols, u, w);
        worst = worse(worst, norm_by_jacobi(weight, rows, cols) / w);
    }
    at_most(worst, 1 + 1e-6, "norm / cap after a step");
}

// Every constraint on matrices of known singular values, at a cap of 1: what it makes of them, and
// that those which promise it leave none above the cap. The second matrix is far out, the third has
// zeros and equal values, the fourth needs no cap, and of the fifth nothing comes.
static void test_constraints(void) {
    static const double all[][6] = {
        {1.2, 1.05, 0.9, 0.5, 0.1, 0.01}, {9, 3, 0.7, 0.2, 0.02, 0.01}, {1.3, 1.3, 1, 0.5, 0, 0},
        {0.9, 0.7, 0.5, 0.2, 0.1, 0.01},  {0}};
    Rng rng = {51};
    for (int trial = 0; trial < 120; trial++) {
        const double *sigma = all[trial % 5];
        int k = trial / 30 % 2 ? 6 : 11, kind = trial / 5 % 6;
        bool far = trial % 5 == 1;
        Scratch s = scratch_create(6, k);
        Config c = {.constraint = kind, .spectral_decay = 0.25};
        float before[66];
        double after[6], wanted[6], expected = 0;
        with_singular_values(s.x, 6, k, sigma, &rng);
        memcpy(before, s.x, (size_t)(6 * k) * sizeof(float));
        constrain(&s, &c, INFINITY, 1);
        for (int i = 0; i < 6; i++) {
            double x = sigma[i];
            const double becomes[] = {0, min(x, 1), x / max(1, sigma[0]), x > 0,
                                      i || x == 0 ? x : 1, i ? x : 0.75 * x}; // SOFT: see below
            wanted[i] = becomes[kind], expected += wanted[i] * x;
        }
        double inner = dot(before, s.x, (size_t)(6 * k)); // were the singular vectors kept?
        if (sigma[0] < 1 && (kind == HARD || kind == NORMALIZE)) // not even rounded
            expect(!memcmp(before, s.x, (size_t)(6 * k) * sizeof(float)));
        singular_values(after, s.x, 6, k), scratch_free(&s);
        if (kind <= STIEFEL) at_most(after[0], 1 + ROUNDING, "constrain: largest value"); // 1e-8
        if (kind == STIEFEL && far) continue; // beyond the reach of orthogonalize
        double slack = kind == STIEFEL ? 5e-3 : 1e-3; // the upper end of a bracket at n = 6
        if (kind != SOFT) near(inner, expected, slack, "constrain: <X, constrain X>");
        qsort(wanted, 6, sizeof *wanted, falling);
        for (int i = 0; i < 6 && kind != SOFT; i++)
            at_most(fabs(after[i] - wanted[i]), slack, constraint_words[kind]);
        for (int i = 1; i < 6 && kind == SOFT; i++) { // in order, the small ones untouched
            double moved = fabs(after[i] - sigma[i]);
            expect(after[i] <= after[i - 1]);
            expect(sigma[i] > 0.1 || far || moved <= 0.02 * sigma[i] + 1e-6);
        }
    }
}

// Constraints at their ends: the sign of values over five decades, values just above the cap, NaN.
static void test_constraints_at_the_ends(void) {
    Rng rng = {52};
    double close[24], most[24];
    Scratch square = scratch_create(24, 24), s = scratch_create(6, 11);
    for (int i = 0; i < 24; i++) close[i] = pow(10, -i / 5.0); // down to 2.5e-5
    with_singular_values(square.x, 24, 24, close, &rng);
    matrix_sign(&square);
    singular_values(most, square.x, 24, 24);
    near(most[0], 1, DOUBLE ? 2e-9 : 2e-6, "matrix_sign: largest value");   // 1.3e-7, 1.6e-12
    near(most[23], 1, DOUBLE ? 2e-9 : 2e-6, "matrix_sign: smallest value"); // 1.9e-7, 1.2e-9
    for (int i = 0; i < 24; i++)
        close[i] = i ? 1 + 1e-7 * pow(1.6, i) : 1e4; // where the sign of w - x is hardest to tell
    with_singular_values(square.x, 24, 24, close, &rng);
    constrain(&square, &(Config){.constraint = HARD}, INFINITY, 1);
    singular_values(most, square.x, 24, 24);
    at_most(most[0], 1 + ROUNDING, "hard cap: values just above it");
    s.x[7] = (float)NAN;
    for (int kind = SOFT; kind <= DECAY; kind++) { // ends, and check_finite has something to find
        if (kind == STIEFEL || kind == HARD) continue;
        constrain(&s, &(Config){.constraint = kind}, INFINITY, 1);
        expect(isnan(s.x[7]));
    }
    scratch_free(&square), scratch_free(&s);
}

// ------------------------------------------------------------------------------------------------
// The certificate: a theorem and its code, attacked from below, and shown to be tight. (VERBOSE=1
// prints how close every attack comes.)

static double sound(Lab *lab) { // K of the weights as they are
    certify(lab->m, &lab->certificate);
    return pow(10, lab->certificate.log10_sound);
}

static double log_bound(Lab *lab, double radius) { // of the norms as they stand in the table
    compose(lab->m, radius, &lab->certificate);
    return lab->certificate.log10_sound;
}

static float *weight(const Lab *lab, Kind kind, int block) {
    return values(lab->m, lab->m->weights, kind, block);
}

static Bracket *bracket(Tensor *t, int head) { return head < 0 ? &t->norm : &t->heads[head]; }

static void random_norms(Model *m, double low, double high, Rng *rng) { // of the table, heads, too
    EACH(t, m)
        for (int head = -1; t->size && head < m->config.heads; head++)
            bracket(t, head)->upper = between(low, high, rng);
}

static double ratio_of(const Lab *lab, const float *x, const float *y, int T) { // of a pair
    float u[POOL];
    int t = 0;
    return pair_ratio(lab->m, lab->s, x, y, T, u, &t);
}

// climb_weights: a step of relative size `rate` along g (of q, k, v, o only when `attention`); then
// every matrix returns to the norm it had.
static void climb_weights(Lab *lab, const float *g, double rate, bool attention) {
    EACH(t, lab->m) {
        float *w = lab->m->weights + t->offset;
        const float *gradient = g + t->offset;
        bool asked = has_heads(t->kind) || t->kind == W_O;
        if (!is_matrix(t->kind) || !t->size || (attention && !asked)) continue;
        double norm = norm_now(w, t->rows, t->cols), size = rms(gradient, t->size);
        double scale = size > 0 ? rate * rms(w, t->size) / size : 0;
        for (size_t j = 0; j < t->size; j++) w[j] += (float)(scale * (double)gradient[j]);
        set_norm(w, t->rows, t->cols, norm);
    }
}

// ascend: gradient ascent on |f(x) - f(y)| / |x - y| at |x - y| = h, over x and y and, if rate > 0,
// over the weights; returns the best ratio seen and leaves its pair and weights behind.
static double ascend(Lab *lab, float *x, float *y, int T, double radius, double h, int steps,
                     double rate, bool attention) {
    int d = lab->m->config.width, t = 0;
    size_t n = (size_t)T * d, count = lab->m->size, size = count * sizeof(float);
    float u[POOL], *px = floats(n), *py = floats(n), *gx = floats(n), *gy = floats(n);
    float *g = floats(count), *kept = floats(count), *w = lab->m->weights;
    double best = 0;
    memcpy(kept, w, size);
    memcpy(px, x, n * sizeof *x), memcpy(py, y, n * sizeof *y);
    for (int step = 0; step < steps; step++) {
        double left = 1 - (double)step / steps;
        project(px, NULL, radius, T, d), project(py, NULL, radius, T, d);
        double ratio = pair_ratio(lab->m, lab->s, px, py, T, u, &t);
        if (ratio > best) {
            best = ratio;
            memcpy(kept, w, size);
            memcpy(x, px, n * sizeof *x), memcpy(y, py, n * sizeof *y);
        }
        float *top = u + t * lab->m->config.vocabulary;
        memset(g, 0, size);
        pull_back(lab->m, lab->s, px, top, t, T, rate > 0 ? g : NULL, gx);
        scale_by(g, count, -1);
        pull_back(lab->m, lab->s, py, top, t, T, rate > 0 ? g : NULL, gy);
        if (rate > 0) climb_weights(lab, g, rate * left, attention);
        for (size_t i = 0; i < n; i++) gx[i] = gy[i] - gx[i];
        double slope = largest_token(gx, T, d, NULL), pace = 0.2 * radius * left;
        for (size_t i = 0; i < n && slope > 0; i++) px[i] += (float)(pace / slope * (double)gx[i]);
        project(px, NULL, radius, T, d);
        memcpy(py, px, n * sizeof *px);
        add_direction(py, gy, h, T, d);
    }
    memcpy(w, kept, size);
    free(px), free(py), free(gx), free(gy), free(g), free(kept);
    return best;
}

// largest_ratio: the largest |f(x) - f(y)| / |x - y| that worst_pair and ascend can find inside
// |.| <= R0, from pairs on the sphere. (It is convex: no far pair has a larger ratio than all of
// the close ones between its two ends.)
static double largest_ratio(Lab *lab, double radius, Rng *rng) {
    enum { T = 6, d = 16 };
    float x[T * d], y[T * d];
    double best = 0;
    for (int restart = 0; restart < 2; restart++) {
        fill_rows(x, T, d, radius, rng);
        best = max(best, worst_pair(lab->m, lab->s, x, y, radius, T, 20, rng));
        best = max(best, ascend(lab, x, y, T, radius, 0.003 * radius, 20, 0, false));
    }
    return best;
}

// random_config: every switch and constant of the network, drawn.
static Config random_config(int index, Rng *rng) {
    static const double scales[] = {0.5, 1, 24};
    Config c = bare(16, 1 << index / FAMILIES % 4, 1 + index / FAMILIES / 4 % 3, 10);
    c.mlp_ratio = 1 + (int)rng_below(rng, 2), c.activation = rng_below(rng, 3) ? MAXMIN : GELU;
    c.softmax_scale = scales[rng_below(rng, 3)];
    c.position_bias = (int)rng_below(rng, 2), c.bias = (int)rng_below(rng, 2);
    c.per_head = (int)rng_below(rng, 2), c.residual = (Residual)rng_below(rng, 3);
    c.value_ratio = 1 + (int)rng_below(rng, 2), c.position_only = rng_below(rng, 4) == 0;
    c.attention_blocks = (int)rng_below(rng, 3); // 0: in all
    c.attention_factor = rng_below(rng, 2) ? 1.0 / 3 : 1;
    c.alpha = rng_below(rng, 2) ? 0.5 : rng_below(rng, 2) ? 0.5 / c.blocks : 0.9;
    return c;
}

// No pair of inputs of any model moves the logits by more than K |x - y|.
static void test_certificate_from_below(void) {
    for (int i = 0; i < MODELS; i++) {
        Family family = (Family)(i % FAMILIES);
        Rng rng = {(uint64_t)i + 1000};
        Config c = random_config(i, &rng);
        Lab lab = lab_create(&c);
        char what[64];
        fill_model(&lab, family == OPTIMISED ? (Family)(i / 60) : family, 0.5, 4, &rng);
        if (family == OPTIMISED) {
            float x[6 * 16], y[6 * 16];
            sound(&lab);
            double R = lab.certificate.radius;
            fill_rows(x, 6, 16, R, &rng), fill_rows(y, 6, 16, R, &rng);
            ascend(&lab, x, y, 6, R, 0.01 * R, 120, 0.2, false);
        }
        double K = sound(&lab), radius = lab.certificate.radius / (1 + 1e-6);
        double ratio = largest_ratio(&lab, radius, &rng);
        snprintf(what, sizeof what, "family %d, H %d, L %d: ratio / K", family, c.heads, c.blocks);
        at_most(ratio / K, 1, what);
        expect(ratio > 0);
    }
}

// attention_only: f(x) = W_o concat_h(A_h v_h) + a constant: no residual, a head of W = 1, and an
// MLP that is x + b wherever |x_i| < 256: there b decides which of a pair is its max. So compose()
// returns |W_o| sqrt(mean F_h^2).
static Lab attention_only(int d, int H, double s) {
    Config c = bare(d, H, 1, d);
    c.alpha = 1, c.bias = 1, c.position_bias = 1, c.softmax_scale = s;
    Lab lab = lab_create(&c);
    for (int i = 0; i < d; i++) {
        size_t diagonal = (size_t)i * (d + 1);
        weight(&lab, W_IN, 0)[diagonal] = weight(&lab, W_OUT, 0)[diagonal] = 1;
        weight(&lab, W_HEAD, 0)[diagonal] = weight(&lab, EMBED, 0)[i] = 1; // R0 = 1
        weight(&lab, B_IN, 0)[i] = i < d / 2 ? 256 : -256;
    }
    for (int h = 0; h < H; h++) weight(&lab, POSITION, 0)[h * c.context] = -1000; // none at itself
    return lab;
}

// worst_head: the weights and the pair that make (4) tight in the heads of `used`, in a plane f0,
// f1 that q and k share: token 2 asks with q = f0; keys k_0 = f1 = -k_1 and values v_0 = -v_1 tie,
// each with weight 1/2. dq = f1, dk_0 = f0 = -dk_1 then move both scores by all of 2 beta, in
// opposite directions. The plane is the slowest pair of rope, which turns it by phi a token: the
// query is turned so that both keys still tie. x and y stay on the sphere, h apart.
static void worst_head(Lab *lab, int used, double norm, float *x, float *y, double h) {
    int d = lab->m->config.width, dh = d / lab->m->config.heads, low = dh / 2 - 1, high = dh - 1;
    double one = sqrt(d), phi = pow(10000, -(double)low / (dh / 2));
    float entry = (float)(norm / sqrt(used));
    float *q = weight(lab, W_Q, 0), *k = weight(lab, W_K, 0), *v = weight(lab, W_V, 0);
    for (int row = 0; row < used * dh; row += dh) { // the same slice in each: |W| = norm
        q[(row + low) * d] = k[(row + low) * d] = entry;
        q[(row + high) * d + 1] = k[(row + high) * d + 1] = v[row * d + 1] = entry;
    }
    for (int i = 0; i < d; i++) weight(lab, W_O, 0)[(size_t)i * (d + 1)] = (float)norm;
    memset(x, 0, 3 * (size_t)d * sizeof *x), memset(y, 0, 3 * (size_t)d * sizeof *y);
    for (int side = -1; side <= 1; side += 2) {
        double c = one * cos(h / 2), s = side * one * sin(h / 2), turn = side * h / 2 - 1.5 * phi;
        const double tokens[3][2] = {{s, c}, {-s, -c}, {one * cos(turn), one * sin(turn)}};
        for (int t = 0; t < 3; t++)
            for (int i = 0; i < 2; i++) (side < 0 ? x : y)[t * d + i] = (float)tokens[t][i];
    }
}

// The constant of one attention layer is reached, at R = 1 and in a larger ball (where that of
// R = 1 is exceeded: the domain counts): no factor in (3), (4), (5) can be dropped. And the point
// of the project: with several heads the paper's accounting is no bound.
static void test_attention_is_tight(void) {
    static const struct { int d, H, used; double s, norm, least; } cases[] = {
        {16, 1, 1, 24, 1, 0.97}, {32, 2, 2, 24, 1, 0.97}, {32, 2, 1, 24, 1, 0.97},
        {64, 4, 1, 24, 1, 0.97}, {64, 4, 4, 6, 1, 0.9},   {64, 8, 3, 24, 1, 0.95},
        {16, 4, 1, 1, 1, 0.867}, {16, 4, 1, 1, 2, 0.928}};
    for (size_t i = 0; i < LENGTH(cases); i++) {
        int d = cases[i].d, used = cases[i].used;
        Lab lab = attention_only(d, cases[i].H, cases[i].s);
        float x[3 * 64], y[3 * 64];
        double norm2 = square(cases[i].norm), least = cases[i].least;
        double beta = cases[i].s * norm2 * cases[i].H / used, wanted = norm2 * (1 + 2 * beta);
        double h = (DOUBLE ? 0.01 : 0.1) / beta;
        worst_head(&lab, used, cases[i].norm, x, y, h);
        double built = ratio_of(&lab, x, y, 3), K = sound(&lab);
        near(K, wanted, 2e-3, "|W_o| sqrt(mean F_h^2)"); // 4 brackets' widths
        at_most(built, wanted * (1 + 1e-9), "what an attention layer reaches of its constant");
        at_most(least * wanted, built, "what an attention layer must reach, at least");
        for (Kind kind = W_Q; kind <= W_O; kind++) // of the whole matrix
            if (kind != POSITION) near(norm(lab.m, kind, 0), cases[i].norm, 5e-4, "|W|");
        double paper = pow(10, lab.certificate.log10_paper);
        if (used < cases[i].H) at_most(paper, built, "the paper's bound and what exceeds it");
        for (int j = 0; j < 3 * d; j++) X[j] = (float)1.25 * x[j], Y[j] = (float)1.25 * y[j];
        double outside = ratio_of(&lab, X, Y, 3), larger = log_bound(&lab, 1.25 * (1 + 1e-6));
        at_most(K * 1.2, outside, "outside of the ball: 1.2 K and ratio");
        at_most(log10(outside), larger, "outside of the ball: ratio and its K, log10");
        at_most(log10(least) + larger, log10(outside), "that and what it must reach, log10");
        int steps = beta < 5 ? 300 : 60;
        double climbed = ascend(&lab, x, y, 3, 1 / (1 + 1e-6), h, steps, 0.01, true);
        at_most(climbed / sound(&lab), 1, "attention, after ascent: ratio / K");
    }
}

// The bound counts constants as the network uses them: 0.98 becomes a larger float, and a network
// of zero layers that keeps 0.98 of its input per layer really keeps that much. Norms that are NaN,
// K = 0 and K beyond double are no NaN of K.
static void test_compose_at_the_ends(void) {
    Config c = bare(2, 1, 40, 2);
    c.alpha = 0.02, c.softmax_scale = 0.7;
    Lab lab = lab_create(&c);
    tensor(lab.m, W_Q, 0)->heads[0].upper = tensor(lab.m, W_K, 0)->heads[0].upper = 1;
    expect(score_bound(lab.m, 0, 0, 1) == 2 * (double)(float)(0.7 / 2)); // dh times s / dh
    float rows[3] = {1, (float)NAN, 3}, x[2] = {1, 1}, h[2] = {0}, W[4] = {0}, y[2];
    double kept = 1;
    expect(isnan(largest_row(rows, 3, 1)));
    residual_forward(y, x, h, W, keep_of(&c), alpha_of(&c), 1, 0, 2, 2);
    for (int layer = 0; layer < 2 * c.blocks; layer++) kept *= (double)y[0];
    compose(lab.m, 1, &lab.certificate);
    expect(log10(kept) <= lab.certificate.log10_trunk);
    expect(kept <= lab.certificate.layers[2 * c.blocks - 1].activation * (1 + 1e-12));
    c.alpha = 1; // and all weights zero: f is constant
    lab = lab_create(&c);
    expect(sound(&lab) == 0);
    random_norms(lab.m, 1e120, 1e120, &(Rng){81});
    tensor(lab.m, W_Q, 1)->heads[0].upper = 0; // beside an activation bound of 1e360
    expect(log_bound(&lab, 1) == INFINITY && lab.certificate.log10_trunk == INFINITY);
}

// (2), (5), (6) and both activation bounds are reached, and the MLP's and the head's constants too:
// every matrix W_ij = norm / I maps c (1 .. 1) to norm c (1 .. 1), so the network acts on constant
// tokens as a chain of scalars, each layer with all of its norm, biases included. Concatenated, the
// rows of W_o and W_out are instead along [x; F(x)], which has the direction of its differences.
static void test_layers_are_tight(void) {
    for (int i = 0; i < 36; i++) {
        Rng rng = {(uint64_t)i + 7};
        Config c = bare(16, 1 << i / 3 % 3, 3, 10);
        bool concat = i / 12 == CONCAT;
        c.residual = (Residual)(i / 12), c.activation = i % 3 || concat ? MAXMIN : GELU;
        c.attention_factor = i % 2 ? 1 : 0.5, c.bias = !concat, c.value_ratio = 1 + i / 6 % 2;
        c.attention_blocks = concat ? i % 3 : 0;
        Lab lab = lab_create(&c);
        EACH(t, lab.m) {
            bool zero = t->kind == W_Q || t->kind == W_K || t->kind == POSITION;
            double norm = 0.5 + 1.5 * rng_uniform(&rng);
            double entry = is_matrix(t->kind) ? norm / t->cols : norm;
            for (size_t j = 0; j < t->size && !zero; j++)
                lab.m->weights[t->offset + j] = (float)entry;
            if (!concat || !t->size || (t->kind != W_O && t->kind != W_OUT)) continue;
            Tensor *inner = tensor(lab.m, t->kind == W_O ? W_V : W_IN, t->block);
            double F = (double)lab.m->weights[inner->offset] * inner->cols; // for x = 1
            if (t->kind == W_O) F *= c.attention_factor;
            double size = 16 + square(F) * (t->cols - 16);
            for (int j = 0; j < (int)t->size; j++)
                lab.m->weights[t->offset + (size_t)j] =
                    (float)(norm * (j % t->cols < 16 ? 1 : F) / sqrt(size * t->cols));
        }
        double h = !DOUBLE && c.activation != GELU ? 0.02 : 1e-3; // the others are linear here
        sound(&lab);
        double R = lab.certificate.radius / (1 + 1e-6);
        float x[2 * 16], y[2 * 16];
        for (int j = 0; j < 2 * 16; j++) x[j] = (float)R, y[j] = (float)(R * (1 - h));
        run(lab.m, lab.s, x, 2);
        for (int layer = 0; layer < 6; layer++) {
            float *after = lab.s->blocks[layer / 2].mid;
            if (layer % 2) after = layer == 5 ? lab.s->last : lab.s->blocks[layer / 2 + 1].x;
            double seen = largest_row(after, 2, 16), a = lab.certificate.layers[layer].activation;
            at_most(seen, a, "scalars: activation and its bound");
            if (c.activation != GELU) at_most(0.998 * a, seen, "scalars: 0.998 bound, activation");
        }
        for (int l = 0; c.activation == GELU && l < 3; l++) { // z to where the slope is largest
            run(lab.m, lab.s, x, 2);
            float *b = weight(&lab, B_IN, l), shift = (float)1.413 - lab.s->blocks[l].z[0];
            for (int j = 0; j < c.width * c.mlp_ratio; j++) b[j] += shift;
        }
        double ratio = ratio_of(&lab, x, y, 2) / sound(&lab);
        at_most(ratio, 1, "scalars: ratio / K"), at_most(0.985, ratio, "0.985 and ratio / K");
    }
}

// certify: every matrix and every head's slice against Jacobi, rows against rms.
static void test_norms(void) {
    Config c = tiny(TIGHT);
    Lab lab = random_lab(&c, 85);
    sound(&lab);
    EACH(t, lab.m)
        for (int head = -1; t->size && head < (has_heads(t->kind) ? H : 0); head++) {
            int rows = head < 0 ? t->rows : t->rows / H, first = head < 0 ? 0 : head * rows;
            const float *w = lab.m->weights + t->offset + (size_t)first * t->cols;
            Bracket *b = bracket(t, head);
            double norm = is_matrix(t->kind) ? norm_by_jacobi(w, rows, t->cols) : 0;
            for (int r = 0; r < rows && !is_matrix(t->kind); r++)
                norm = worse(norm, rms(w + (size_t)r * t->cols, (size_t)t->cols));
            expect(b->lower <= norm && norm <= b->upper && b->upper <= 1.005 * b->lower);
        }
}

// The paper's bound of its own network at uniform norms, against its published formula's values.
static void test_paper_bound(void) {
    static const double known[][2] = {{1, 0.876}, {1.2, 1.95}, {1.4, 5.69}, {2, 840}};
    Config c = tiny(PAPER);
    c.blocks = 3, c.alpha = 1.0 / 6;
    Lab lab = lab_create(&c);
    for (int i = 0; i < 4; i++) {
        EACH(t, lab.m) t->norm.upper = t->kind == EMBED ? 1 : known[i][0];
        paper_bound(lab.m, &lab.certificate);
        near(pow(10, lab.certificate.log10_paper), known[i][1], 0.01, "paper's bound");
    }
}

// combined: a stream and a layer of I numbers, by (6) or (6') of dev/certificate.md.
static double combined(const Config *c, double factor, double W, double x, double F, int I) {
    double alpha = (double)(float)((c->residual == CONVEX ? c->alpha : 1) * factor); // as used
    double keep = c->residual == CONVEX ? (double)(float)(1 - c->alpha) : 1;
    if (c->residual != CONCAT) return x * keep + alpha * W * F;
    return W * sqrt((c->width * x * x + I * alpha * F * alpha * F) / (c->width + I));
}

// The sound bound at random norms, per head, against dev/certificate.md evaluated here, for every
// kind of network. So K rises with every norm and with the radius, as that formula does, and q, k,
// v count by their slices, not as a whole.
static void test_sound_bound(void) {
    for (int i = 0; i < 60; i++) {
        Rng rng = {(uint64_t)i};
        Config c = random_config(i * FAMILIES, &rng);
        Lab lab = lab_create(&c);
        const Model *m = lab.m;
        random_norms(lab.m, 0.2, 2.2, &rng);
        bool gelu = c.activation == GELU;
        int d = c.width;
        double a = 0.9, K = 1;
        compose(m, a, &lab.certificate);
        for (int l = 0; l < c.blocks; l++) {
            const Layer *layer = &lab.certificate.layers[2 * l];
            double F2 = 0, v2 = 0, o = norm(m, W_O, l), factor = c.attention_factor;
            for (int h = 0; h < c.heads; h++) {
                double v = tensor(m, W_V, l)->heads[h].upper, q = tensor(m, W_Q, l)->heads[h].upper;
                double b = c.softmax_scale * q * tensor(m, W_K, l)->heads[h].upper * a * a;
                if (c.position_only) b = 0;
                F2 += v * v * (1 + 2 * b) * (1 + 2 * b) / c.heads, v2 += v * v / c.heads;
            }
            if (c.attention_blocks == 0 || l < c.attention_blocks) {
                K *= combined(&c, factor, o, 1, sqrt(F2), d * c.value_ratio);
                a = combined(&c, factor, o, a, a * sqrt(v2), d * c.value_ratio);
            }
            near(layer[0].activation, a, 1e-12, "compose: activations after attention");
            near(pow(10, layer[0].log10_sound), K, 1e-12, "compose: K after attention");
            double in = norm(m, W_IN, l), w = norm(m, W_OUT, l), slope = 1.1289931 / 1.1289;
            double z = in * a + (c.bias ? norm(m, B_IN, l) : 0);
            K *= combined(&c, 1, w, 1, gelu ? in * slope : in, d * c.mlp_ratio);
            a = combined(&c, 1, w, a, gelu ? z / 1.1289 : z, d * c.mlp_ratio);
            near(layer[1].activation, a, 1e-12, "compose: activations after the MLP");
            near(pow(10, layer[1].log10_sound), K, 1e-12, "compose: K after the MLP");
        }
        double error = 10 * COMPOSE_ERROR(2 * c.blocks, c.heads, fabs(log10(K)));
        near(pow(10, lab.certificate.log10_trunk), K, error, "compose: K of the trunk");
        expect(lab.certificate.log10_trunk >= log10(K)); // never rounded down
        near(pow(10, lab.certificate.log10_sound), K * norm(m, W_HEAD, 0), error, "compose: K");
    }
}

static Config profile(Preset preset, double K) { // a preset with its caps scaled to the budget K
    Config c = small(preset, 16, 4, 2, 12);
    c.lipschitz = K;
    apply_budget(&c);
    return c;
}

// A budget K is used up by the caps, and no weights at their caps can pass it; nor can weights
// after huge steps along random gradients, from the first.
static void test_budget(void) {
    static const double budgets[] = {1.5, 2, 10, 100, 1e4}, rates[] = {0.1, 1, 30, 1e3};
    double fullest = 0;
    for (int i = 0; i < 60; i++) {
        double K = budgets[i % 5], largest = 0;
        Rng rng = {(uint64_t)i};
        Config c = profile((Preset)(i / 5 % 2), K);
        c.weight_decay = (double[]){0, 0.05, 1}[i / 20];
        at_most(bound_at_caps(&c, 1), log10(K), "what the caps allow, log10");
        at_most(log10(0.98 * K), bound_at_caps(&c, 1), "0.98 budget, and that");
        Lab lab = lab_create(&c);
        float *g = take(lab.m->size, sizeof *g);
        for (Family family = GAUSSIAN; i < 10 && family <= ONE_HEAD; family++) {
            fill_model(&lab, family, 0, 0, &rng);
            largest = max(largest, sound(&lab));
        }
        at_most(largest / K, 1, "weights at their caps: K / budget");
        if (i < 10) at_most(0.9 * K, largest, "0.9 budget and the largest K at the caps");
        model_init(lab.m, &rng);
        for (int step = 0; step < 7; step++) {
            randomize(g, lab.m->size, step % 3 ? 1 : 1e-6, &rng);
            optimizer_step(lab.m, g, rates[(i + i / 20) % 4]);
            double now = sound(&lab);
            at_most(now / K, 1, "after huge steps: K / budget");
            fullest = max(fullest, now / K);
        }
    }
    at_most(0.9, fullest, "0.9 and the closest that a step comes to its budget");
}

// certified_radius: the largest eps at which a position with this margin is certified.
static double certified_radius(Lab *lab, double room, double radius) {
    double low = 0, high = 4;
    for (int i = 0; i < 50; i++) {
        double eps = (low + high) / 2;
        compose(lab->m, radius + eps, &lab->certificate);
        if (room >= pow(10, lab->certificate.log10_trunk) * eps * (1 + 1e-9)) low = eps;
        else high = eps;
    }
    return low;
}

// Certified predictions: a window of WIN tokens, with the radius of every position's prediction, or
// of a given target; -1, if that is not predicted. The margin is the distance, in RMS norm, of the
// trunk's output to the nearest boundary between two predictions: along w_j - w_c the logits of c
// and j meet there.
enum { WIN = 5, WIDE_D = 16, CLASSES = 6 };
typedef struct {
    float x[WIN * WIDE_D];
    uint16_t predicted[WIN];
    double radii[WIN];
} Window;

static Window window_create(Lab *lab, const uint16_t *tokens, const uint16_t *targets) {
    Window win;
    double *distances = head_distances(lab->m), R = lab->certificate.radius;
    const float *w = weight(lab, W_HEAD, 0);
    forward_tokens(lab->m, lab->s, tokens, WIN), logits_forward(lab->m, lab->s, 0, WIN);
    memcpy(win.x, lab->s->blocks[0].x, sizeof win.x);
    for (int t = 0; t < WIN; t++) {
        const float *z = lab->s->logits + (size_t)t * CLASSES;
        double nearest = INFINITY;
        const float *out = lab->s->last + t * WIDE_D;
        double size = logit_size(lab->m) * distance(out, NULL, WIDE_D) / sqrt(WIDE_D);
        int top = 0;
        for (int j = 1; j < CLASSES; j++) top = z[j] > z[top] ? j : top;
        for (int j = 0; j < CLASSES; j++) size = max(size, fabs((double)z[j]));
        for (int j = 0; j < CLASSES; j++) {
            double apart = distance(w + j * WIDE_D, w + top * WIDE_D, WIDE_D) * sqrt(WIDE_D);
            double gap = (double)z[top] - (double)z[j] - LOGIT_ERROR * size;
            if (j != top) nearest = min(nearest, max(0, gap) / apart);
            expect(j == top || margin(z, j, distances, 0, CLASSES) < 0);
        }
        double room = margin(z, top, distances, size, CLASSES);
        near(room, nearest, 1e-14, "margin"); // 4.7e-15, rounded down
        bool wrong = targets && targets[t] != top;
        win.predicted[t] = (uint16_t)top;
        win.radii[t] = wrong ? -1 : certified_radius(lab, room, R);
    }
    compose(lab->m, R, &lab->certificate);
    free(distances);
    return win;
}

// rival_wins: whether logit j can be made to beat the predicted one at token t within eps of x, by
// projected ascent on their difference from a random start.
static bool rival_wins(const Lab *lab, const Window *w, int j, int t, double eps, Rng *rng) {
    float y[WIN * WIDE_D], gradient[WIN * WIDE_D], u[CLASSES] = {0};
    bool wins = false;
    if (j == w->predicted[t]) return false;
    u[w->predicted[t]] = -1, u[j] = 1;
    for (int i = 0; i < WIN * WIDE_D; i++) y[i] = w->x[i] + (float)(eps * rng_normal(rng));
    for (int step = 0; step < 12 && !wins; step++) {
        project(y, w->x, eps, WIN, WIDE_D);
        run(lab->m, lab->s, y, WIN);
        const float *z = lab->s->logits + (size_t)t * CLASSES;
        wins = z[j] >= z[w->predicted[t]];
        pull_back(lab->m, lab->s, y, u, t, WIN, NULL, gradient);
        add_direction(y, gradient, step < 6 ? 2 * eps : eps / 2, WIN, WIDE_D);
    }
    return wins;
}

// A tie is no prediction, even one that no move can break: that of two equal rows of W_head; nor is
// a NaN. And of two rows that differ by an ulp here and there no gap is more than float's noise.
static void test_margin_of_ties(void) {
    enum { N = 256 };
    const float z[] = {2, 2, 1}, none[] = {1, (float)NAN, 0};
    const double apart[] = {0, 1, 1, 1, 0, 1, 1, 1, 0}, equal[] = {0, 0, 1, 0, 0, 1, 1, 1, 0};
    expect(margin(z, 0, apart, 0, 3) < 0 && margin(z, 1, equal, 0, 3) < 0);
    expect(margin(z + 1, 0, equal, 5, 2) == INFINITY);
    near(margin(z + 1, 0, apart, 0, 2), 1 - 2 * LOGIT_ERROR, 1e-15, "a margin of 1");
    near(margin(z + 1, 0, apart, 5, 2), 1 - 5 * LOGIT_ERROR, 1e-15, "a margin of large numbers");
    expect(margin(none, 0, apart, 0, 3) < 0);
    Rng rng = {93};
    int wrong = 0;
    for (int trial = 0; trial < 2000; trial++) {
        float w[2 * N], x[N], logits[2];
        randomize(w, N, 1, &rng), randomize(x, N, 1, &rng);
        long double gap = 0;
        for (int i = 0; i < N; i++) {
            w[N + i] = w[i] * (1 + 2 * (float)epsilon * ((float)rng_below(&rng, 3) - 1));
            gap += ((long double)w[i] - (long double)w[N + i]) * (long double)x[i];
        }
        linear_forward(logits, x, w, NULL, 1, N, 2);
        double size = distance(w, NULL, N) * distance(x, NULL, N);
        double room = margin(logits, 0, (double[]){0, 1e-9, 1e-9, 0}, size, 2);
        wrong += logits[0] > logits[1] && gap < 0;
        expect(room <= 0);
    }
    expect(wrong > 50); // that float sees the wrong one in front
}

// certified_share: the positions whose radius is beyond eps, counted by hand.
static void test_certified_share(void) {
    enum { WINDOWS = 8, COUNT = WINDOWS * WIN };
    Config c = bare(WIDE_D, 2, 1, CLASSES);
    c.context = WIN;
    Lab lab = lab_create(&c);
    uint16_t text[COUNT + 1];
    double radii[COUNT];
    Rng rng = {92};
    fill_model(&lab, GAUSSIAN, 0.3, 1.5, &rng);
    sound(&lab);
    double *distances = head_distances(lab.m);
    for (int i = 0; i <= COUNT; i++) text[i] = (uint16_t)rng_below(&rng, CLASSES);
    for (int i = 0; i < COUNT; i += WIN) {
        Window w = window_create(&lab, text + i, text + i + 1);
        memcpy(radii + i, w.radii, sizeof w.radii);
    }
    #define SHARE(eps) certified_share(lab.m, lab.s, (Span){text, COUNT + 1}, WINDOWS, distances, \
                                       eps)
    for (int i = 0; i < 2 * COUNT; i++) { // just inside of every radius, and just outside
        double eps = max(0, radii[i / 2] * (1 + (i % 2 ? 1e-6 : -1e-6)));
        int proven = 0;
        for (int j = 0; j < COUNT; j++) proven += radii[j] > eps;
        near(SHARE(eps), proven / (double)COUNT, 1e-15, "share");
    }
    double right = SHARE(0);
    tensor(lab.m, W_Q, 0)->heads[0].upper = INFINITY; // no bound, but nothing has moved
    expect(right > 0 && right == SHARE(0));
    free(distances);
}

// A certified position survives every attack inside its radius, along the loss's gradient and every
// rival's; not much further out, some fall.
static void test_certified_predictions(void) {
    double weakest = INFINITY; // the first fall, in radii
    for (int i = 0; i < 8 * WIN; i++) {
        Rng rng = {(uint64_t)(i / WIN)};
        int kind = i / WIN, t = i % WIN;
        Config c = bare(WIDE_D, 1 + kind % 2, 1 + kind / 4, CLASSES);
        c.bias = c.position_bias = kind / 2 % 2, c.residual = (Residual)(kind / 2 % 3);
        if (kind % 3 == 0) c.activation = GELU;
        Lab lab = lab_create(&c);
        uint16_t tokens[WIN];
        fill_model(&lab, kind % 2 ? ORTHOGONAL : GAUSSIAN, 0.3, 1.5, &rng);
        sound(&lab);
        for (int p = 0; p < WIN; p++) tokens[p] = (uint16_t)rng_below(&rng, CLASSES);
        Window w = window_create(&lab, tokens, NULL);
        for (int steps = 5; steps <= 40; steps *= 2) {
            bool safe[WIN];
            memset(safe, 1, sizeof safe);
            attack(lab.m, lab.s, w.x, w.predicted, 0.999 * w.radii[t], steps, WIN, safe);
            for (int p = 0; p < WIN; p++) expect(safe[p] || w.radii[p] < w.radii[t]);
        }
        for (int j = 0; j < CLASSES; j++) {
            double by = 0.999;
            while (by < 40 && !rival_wins(&lab, &w, j, t, by * w.radii[t], &rng)) by *= 1.4;
            expect(by > 1);
            weakest = min(weakest, by);
        }
    }
    at_most(weakest, 4, "the first prediction falls at this many radii");
}

// What is printed of a bound is a bound, too.
static void test_show_bound(void) {
    Rng rng = {1};
    for (int i = 0; i < 2000; i++) {
        double x = i < 100 ? i / 10.0 : 20 * rng_uniform(&rng) - 5, bound = pow(10, x);
        for (int digits = 6; digits <= 9; digits++) { // in the last digit only
            double printed = atof(show_bound(x, digits)), last = pow(10, floor(x) + 1 - digits);
            expect(printed >= bound && printed - bound <= 1.001 * last);
        }
        expect(rounded_up(x, 1e6) >= x && rounded_up(x, 1e6) < x + 1.1e-6);
    }
    expect(!strcmp(show_bound(0, 6), "1") && !strcmp(show_bound(2, 9), "100"));
    expect(!strcmp(show_bound(log10(7.00000001), 6), "7.00001"));
    expect(!strcmp(show_bound(-INFINITY, 6), "0"));
    expect(!strcmp(show_bound(-400.00001, 6), "10^-400.0000")); // it is not 0
    expect(!strcmp(show_bound(310.00001, 6), "10^310.0001"));
    expect(!strcmp(show_bound(INFINITY, 6), "10^inf"));
}

// ------------------------------------------------------------------------------------------------
// The programs from outside: first files: texts, places, hostile checkpoints; then the commands.
// Each test runs the real binaries, in a temporary directory. Nothing here depends on precision.

static const char *binary, *searcher; // paths of lipgpt and of search, or NULL
static bool leaks_matter;             // a program that dies need not free its memory
static pid_t child;

#define SHAPE "--width 16 --heads 2 --blocks 1 --context 8 --batch 4 "
#define NET "--data text --preset paper " SHAPE "--lr 0.1 --sample-every 0 "

// contents: a whole file and a final 0, or NULL if there is none.
static char *contents(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    char *bytes = allocate(1 << 20, 1);
    *size = fread(bytes, 1, (1 << 20) - 1, file);
    fclose(file);
    return bytes;
}

static void put(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    expect(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
}

static bool same(const char *a, const char *b) { // both files are there, and equal
    size_t n = 0, m = 0;
    char *x = contents(a, &n), *y = contents(b, &m);
    bool equal = x && y && n == m && !memcmp(x, y, n);
    free(x), free(y);
    return equal;
}

static void copy(const char *from, const char *to) {
    size_t n = 0;
    char *bytes = contents(from, &n);
    put(to, bytes, bytes ? n : 0), free(bytes);
}

static bool exists(const char *path) { return access(path, F_OK) == 0; }

static void too_long(int signal_number) { (void)signal_number, kill(child, SIGKILL); }

// start: lipgpt with these arguments; or search, with "search ..."; or with "!" any other program.
// Never longer than two minutes. Not by fork: after one, LLVM's OpenMP leaves a page behind in
// /dev/shm, and a small one fills up.
static void start(const char *line) {
    extern char **environ;
    char words[4096], *argv[256] = {"lipgpt"};
    bool search = !strncmp(line, "search", 6), other = *line == '!';
    const char *program = search ? searcher : other ? "/usr/bin/env" : binary;
    posix_spawn_file_actions_t files;
    int count = !search;
    snprintf(arguments, sizeof arguments, "%s", line);
    snprintf(words, sizeof words, "%s", line + other);
    for (char *word = strtok(words, " "); word && count < 255; word = strtok(NULL, " "))
        argv[count++] = word;
    // an exit status of its own, so that a sanitizer's stop is no refusal
    setenv("ASAN_OPTIONS", leaks_matter ? "exitcode=99"
           : "exitcode=99:detect_leaks=0:allocator_may_return_null=1", 1);
    posix_spawn_file_actions_init(&files);
    for (int i = 1; i <= 2; i++)
        posix_spawn_file_actions_addopen(&files, i, i == 1 ? "stdout" : "stderr",
                                         O_WRONLY | O_CREAT | O_TRUNC, 0666);
    fflush(NULL), signal(SIGALRM, too_long);
    if (posix_spawn(&child, program, &files, NULL, argv, environ) != 0)
        printf("cannot start %s\n", program), exit(1);
    posix_spawn_file_actions_destroy(&files), alarm(120);
}

static int finish(void) { // exit status, or minus the signal that killed it
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    alarm(0);
    for (int i = 0; i < 2; i++) {
        size_t n;
        char *text = contents(i ? "stderr" : "stdout", &n);
        snprintf(i ? errors : output, sizeof output, "%s", text ? text : "");
        free(text);
    }
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int execute(const char *line) { return start(line), finish(); }

static void says(const char *wanted) { // the last run, somewhere
    check(strstr(output, wanted) || strstr(errors, wanted), "it does not say \"%s\"", wanted);
}

// refused: the failure policy: one line on stderr that says why, nothing on stdout.
static void refused(void) {
    expect(!strncmp(errors, "lipgpt: ", 8) && strchr(errors, '\n') == strchr(errors, 0) - 1);
    expect(!*output);
}

// gives: runs a program that must end with this status and say this; 0: and free all its memory;
// others: and be a refusal.
__attribute__((format(printf, 3, 4)))
static void gives(int wanted, const char *text, const char *format, ...) {
    char line[4096];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    leaks_matter = wanted == 0;
    int status = execute(line);
    leaks_matter = false;
    check(status == wanted, "status %d, not %d", status, wanted);
    says(text);
    if (wanted) refused();
}

// printed: the number behind `name<TAB>` at the start of a line, NAN if there is no such line.
static double printed(const char *name) {
    size_t n = strlen(name);
    for (const char *line = output; line; line = strchr(line, '\n'), line += line != NULL)
        if (!strncmp(line, name, n) && line[n] == '\t') return strtod(line + n + 1, NULL);
    return NAN;
}

// holds: a checkpoint's metadata has this value.
static void holds(const char *path, const char *key, const char *value) {
    char pair[512];
    size_t n = 0;
    char *bytes = contents(path, &n);
    snprintf(pair, sizeof pair, "\"%s\":\"%s\"", key, value);
    check(bytes && strstr(bytes + 8, pair), "%s has no %s", path, pair);
    free(bytes);
}

// write_texts: 6000 bytes of words in a random order, another such text, and two letters.
static void write_texts(void) {
    static const char *const words[] = {"to ", "be ", "or ", "not ", "that ", "is ", "a ",
                                        "dream\n"};
    char two[200];
    for (unsigned which = 0, draw; which < 2; which++) {
        char text[6001] = "";
        draw = which;
        for (size_t n = 0; n < 5990; n += strlen(text + n))
            draw = draw * 1103515245 + 12345, strcpy(text + n, words[draw >> 16 & 7]);
        put(which ? "other" : "text", text, strlen(text));
    }
    for (size_t i = 0; i < sizeof two; i++) two[i] = "ab"[i * i % 7 & 1];
    put("two", two, sizeof two), put("empty", "", 0), mkdir("directory", 0777);
}

// --- Text, tokens: what cannot be trained on says why; what can, trains.
static void test_data(void) {
    static const char line[] = "train --preset paper " SHAPE "--steps 2 --tokens 9 --out x.st "
        "--data %s";
    unsigned char all[2560], shard[1024 + 1000];
    int32_t header[256] = {20240520, 1, 500};
    uint16_t tokens[500];
    for (size_t i = 0; i < sizeof all; i++) all[i] = (unsigned char)(i * 7);
    for (int i = 0; i < 500; i++) tokens[i] = (uint16_t)(i * i % 300);
    memcpy(shard, header, 1024), memcpy(shard + 1024, tokens, 1000);
    put("all", all, sizeof all), put("shard", shard, sizeof shard);
    put("cut", shard, sizeof shard - 1), put("cut2", shard, 1000); // and no whole header
    header[2] = -1, memcpy(shard, header, 1024), put("cut3", shard, sizeof shard);
    put("short", "abcabcabcabcabcab", 17), put("one", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 35);
    gives(1, "none", line, "none");
    gives(1, "not a regular file", line, "directory");
    if (mkfifo("pipe", 0666) == 0) { // which nobody will ever write to
        gives(1, "pipe is not a regular file", line, "pipe");
        gives(1, "pipe is not a regular file", "eval --model pipe");
    }
    gives(1, "empty has 0 tokens", line, "empty");
    gives(1, "17 tokens", line, "short");
    gives(1, "distinct byte", line, "one");
    gives(1, "500 tokens but has 2023 bytes", line, "cut");
    gives(1, "1000 bytes", line, "cut2");
    gives(1, "-1 tokens", line, "cut3");
    gives(0, "vocabulary 256", line, "all");
    put("utf8", "h\xc3\xa9l\xc3\xa9ne na\xc3\xafve \xe2\x82\xac! \xf0\x9f\x8c\x8d\n", 27);
    gives(0, "27 tokens", line, "utf8");
    gives(0, "", "sample --model x.st --tokens 2 --prompt h\xc3\xa9l");
    expect(!strncmp(output, "h\xc3\xa9l", 4));
    gives(0, "500 tokens, vocabulary 384", line, "shard");
    gives(0, "full_loss", "eval --data shard --model x.st");
    gives(0, " ", "sample --model x.st --tokens 3");
    gives(1, "token shard", "eval --data text --model x.st");
    gives(1, "--prompt", "sample --model x.st --prompt a");
}

static void put_shard(const char *path, int count, int first, int symbols) {
    unsigned char shard[1024 + 2 * 500] = {0};
    int32_t header[3] = {20240520, 1, count};
    memcpy(shard, header, sizeof header);
    for (int i = 0; i < count; i++) {
        uint16_t token = (uint16_t)(first + i * i % symbols);
        memcpy(shard + 1024 + 2 * i, &token, 2);
    }
    put(path, shard, 1024 + 2 * (size_t)count);
}

// --- Shards: a pattern in order of name; each is checked on its own; what validates may be a file.
static void test_shards(void) {
    static const char line[] = "train --preset paper " SHAPE "--steps 2 --tokens 9 --out x.st ";
    enum { LONG = 8 };
    put_shard("many_2.bin", 400, 0, 200), put_shard("many_1.bin", 300, 100, 130);
    put_shard("val.bin", 90, 0, 128), put_shard("high.bin", 90, 300, 50);
    gives(0, "700 tokens, vocabulary 256", "%s --data many_*.bin", line);
    expect(strstr(output, "full_positions\t39\n") && !strstr(output, "slice"));
    gives(0, "790 tokens, vocabulary 256", "%s --data many_*.bin --val-data val.bin", line);
    expect(strstr(output, "full_positions\t89\n"));
    gives(0, "full_positions\t89\n", "eval --model x.st");
    gives(0, "full_positions\t39\n", "eval --model x.st --data many_2.bin");
    gives(0, "full_positions\t299\n", "eval --model x.st --val-data many_1.bin");
    gives(0, "", "train --resume x.st --steps 3");
    put_shard("other.bin", 80, 0, 9);
    gives(1, "--data and --val-data", "train --resume x.st --steps 4 --val-data other.bin");
    gives(1, "many_2.bin trains and validates",
          "%s --data many_*.bin --val-data ./many_2.bin", line);
    gives(1, "text trains and validates", "%s --data text --val-data text", line);
    gives(0, "vocabulary 400", "%s --data many_*.bin --vocabulary 400 --val-data high.bin", line);
    gives(1, "300 of high.bin at 0 is not among its 256",
          "%s --data many_*.bin --val-data high.bin", line);
    gives(1, "a larger --vocabulary", "%s --data many_*.bin --vocabulary 200", line);
    gives(1, "a token shard", "%s --data text --val-data val.bin", line);
    gives(1, "many_1.bin is a token shard", "%s --data many_*.bin --log many_1.bin", line);
    gives(1, "text is text", "%s --data tex* --log ./text", line); // which it would replace
    gives(1, "nothing_*.bin", "%s --data nothing_*.bin", line);
    gives(0, "700 tokens, vocabulary 256", "%s --data many_[12].bin", line);
    gives(1, "cannot open many_?.bin", "%s --data many_?.bin", line);
    put_shard("many_[12].bin", 100, 0, 2); // a file's name is a name first
    gives(0, "100 tokens, vocabulary 128", "%s --data many_[12].bin", line);
    remove("many_[12].bin");
    put_shard("many_3.bin", 5, 0, 3);
    gives(1, "many_3.bin has 5 tokens", "%s --data many_*.bin", line);
    remove("many_3.bin"), remove("x.st");

    // What a sample prints: numbers, or the bytes that a file has for them.
    char lines[1 << 12] = "";
    put_shard("two.bin", 100, 0, 2), put_shard("val.bin", 90, 0, 2);
    gives(0, "", "%s --data two.bin --vocabulary 5", line);
    for (int i = 0; i < 4; i++)
        strcat(lines, i == 1 ? "\"\\u00c3\\u00a9 \\n\"\n" : "\"a\xc3\xa9\"\n");
    put("lines", lines, strlen(lines));
    #define DRAWN "sample --model x.st --tokens 200 --seed 3 --temperature 100 "
    gives(0, "", DRAWN);
    char numbers[1 << 12], *end = numbers, wanted[1 << 12] = "";
    strcpy(numbers, output);
    for (int token, size; sscanf(end, "%d %n", &token, &size) == 1; end += size)
        strcat(wanted, token == 4 ? "4 " : token == 1 ? "\xc3\xa9 \n" : "a\xe9");
    gives(0, "", DRAWN "--vocabulary-file lines");
    expect(!strncmp(output, wanted, strlen(wanted)) && strlen(output) == strlen(wanted) + 1);
    expect(strstr(numbers, "4 ") && strstr(wanted, "\xc3\xa9") && strstr(wanted, "a\xe9"));
    char bytes[9] = "";
    FILE *file = tmpfile();
    write_token(file, &(Data){.vocabulary = 2}, "\"\"\n\"\\u0000a\\u0080\\u00ff\"\n", 1);
    rewind(file);
    expect(fread(bytes, 1, 9, file) == 4 && !memcmp(bytes, "\0a\x80\xff", 4));
    fclose(file);
    gives(1, "cannot open none", "sample --model x.st --vocabulary-file none");
    gives(1, "text begins with no JSON string", "sample --model x.st --vocabulary-file text");
    gives(1, "empty begins with no JSON string", "sample --model x.st --vocabulary-file empty");

    put_shard("val.bin", 90, 0, 128);
    int32_t taken_from[3] = {0};
    Data data = load_data("many_*.bin", "val.bin", LONG, (Data){0});
    const Span *texts = data.train; // many_1.bin, many_2.bin, val.bin
    Rng rng = {7};
    for (int i = 0; i < 20000; i++) {
        const uint16_t *window = draw_window(texts, 3, LONG, &rng);
        int which = 0;
        while (which < 3 && !(window >= texts[which].tokens &&
                              window + LONG < texts[which].tokens + texts[which].count))
            which++;
        expect(which < 3);
        if (which < 3) taken_from[which]++;
    }
    for (int i = 0; i < 3; i++) { // in proportion to the windows that each has; 8 sigma at most
        double share = (double)(texts[i].count - LONG) / (790 - 3 * LONG);
        near(taken_from[i], 20000 * share, 0.13, "windows of a shard");
    }
    data_free(&data);
}

// --- Files: places that cannot be written are found out before the first step; two files under
// one name would cost the user one of them; a sample replaces what has its name.
static void test_places(void) {
    static const struct { int status; const char *places, *reason; } bad[] = {
        {1, "--out text/m.st", "text"},
        {1, "--out text/deep/m.st", "text"},
        {1, "--log text/log --out w.st", "text"},
        {1, "--out directory", "directory"},
        {1, "--log directory --out w.st", "directory"},
        {2, "--out=", "--out"},
        {2, "--log= --out w.st", "--log"},
        {1, "--out text", "one file"},
        {1, "--out alias", "one file"},
        {1, "--log text", "one file"},
        {1, "--out w.st --log w.st", "one file"},
        {1, "--out w.st --log w.st.txt", "one file"},
    };
    copy("text", "text.kept"), copy("other", "other.kept");
    expect(!link("text", "alias") && !symlink("loop", "loop") && !link("other", "linked.st.txt"));
    for (size_t i = 0; i < LENGTH(bad); i++) {
        gives(bad[i].status, bad[i].reason, "train " NET "--steps 200 --eval-every 200 %s",
              bad[i].places);
        expect(!strstr(errors, "step 200")); // not after hours
    }
    expect(!exists("text.tmp") && !exists("directory.tmp") && !exists(".tmp"));
    gives(0, "", "train " NET "--steps 4 --stop 2 --out twice.st --log twice");
    gives(1, "cannot read loop", "train --resume twice.st --log loop");
    gives(1, "other is no log of lipgpt", "train --resume twice.st --log other");
    gives(0, "", "train " NET "--steps 4 --stop 0 --out zero.st --log zero");
    gives(1, "other is no log of lipgpt", "train --resume zero.st --log other");
    gives(0, "", "train --resume zero.st --log empty");
    gives(0, "linked.st", "train " NET "--steps 2 --tokens 9 --out linked.st");
    expect(same("text", "text.kept") && same("other", "other.kept"));
    expect(!exists("linked.st.txt.tmp"));
}

// --- Checkpoints that others wrote, or broke.
static char *model, *model_header; // a small valid one: 8 bytes of length, header, data; its header
static size_t model_size, header_size;

static void load_model(const char *path) {
    uint64_t length = 0;
    free(model), free(model_header);
    model = contents(path, &model_size);
    memcpy(&length, model, 8);
    header_size = (size_t)length;
    expect(length % 8 == 0 && length < model_size);
    model_header = memcpy(allocate(header_size + 1, 1), model + 8, header_size);
}

// forge: bad.st with this header, claimed to be so long, and the model's data.
static void forge(const char *header, size_t size, uint64_t claimed) {
    char *bytes = allocate(8 + size + model_size, 1);
    memcpy(bytes, &claimed, 8), memcpy(bytes + 8, header, size);
    memcpy(bytes + 8 + size, model + 8 + header_size, model_size - 8 - header_size);
    put("bad.st", bytes, size + model_size - header_size);
    free(bytes);
}

// edited: a header with the first `most` occurrences of `from` replaced, where ' stands for ".
static char *edited(const char *header, const char *from, const char *to, int most) {
    char quoted[2][512], *text;
    size_t size, n = strlen(from);
    for (int i = 0; i < 2; i++) {
        snprintf(quoted[i], sizeof quoted[i], "%s", i ? to : from);
        for (char *p = quoted[i]; *p; p++) *p = *p == '\'' ? '"' : *p;
    }
    FILE *file = open_memstream(&text, &size);
    const char *at = strstr(header, quoted[0]);
    check(at != NULL, "no %s in the header of a checkpoint", from);
    for (; at && most > 0; most--, header = at + n, at = strstr(header, quoted[0]))
        fprintf(file, "%.*s%s", (int)(at - header), header, quoted[1]);
    fputs(header, file), fclose(file);
    return text;
}

// reformat: the JSON at *p again, with `space` around every token, and the members of its objects
// as they are (order 0), sorted (1) or reversed (-1). No string of it ends with an escaped quote.
static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static char *reformat(const char **p, int order, const char *space) {
    char *text, *members[400];
    size_t size, count = 0;
    FILE *file = open_memstream(&text, &size);
    const char *from = *p, open = **p, close = open == '{' ? '}' : ']';
    if (open == '{' || open == '[') {
        for (++*p; **p != close; *p += **p == ',') members[count++] = reformat(p, order, space);
        if (order > 0 && open == '{') qsort(members, count, sizeof *members, by_text);
        fprintf(file, "%c%s", open, space);
        for (size_t i = 0; i < count; i++) {
            size_t k = order < 0 && open == '{' ? count - 1 - i : i;
            fprintf(file, "%s%s", i ? "," : "", members[k]), free(members[k]);
        }
        ++*p, fprintf(file, "%c%s", close, space);
    } else { // a string, perhaps the name of a member, or a number
        while (open == '"' && (*++*p != '"' || (*p)[-1] == '\\')) {}
        *p += open == '"' ? 1 : strspn(*p, "0123456789");
        fprintf(file, "%s%.*s%s", space, (int)(*p - from), from, space);
        if (**p == ':') {
            char *value = reformat((++*p, p), order, space);
            fprintf(file, ":%s%s", space, value), free(value);
        }
    }
    fclose(file);
    return text;
}

// exchange: W_q and W_k, which stand side by side, their momenta and mean squares change places in
// the data of the model.
static void exchange(void) {
    for (const char *at = model_header; (at = strstr(at, "query.weight")); at++) {
        size_t begin = 0, end = 0;
        sscanf(strstr(at, "data_offsets"), "data_offsets\":[%zu,%zu", &begin, &end);
        float *first = (float *)(void *)(model + 8 + header_size + begin);
        for (size_t i = 0, n = (end - begin) / sizeof(float); i < n; i++) {
            float kept = first[i];
            first[i] = first[n + i], first[n + i] = kept;
        }
    }
}

// Whatever a writer of safetensors may make of a checkpoint is the same model: certify prints the
// same, and a resumed run (with the data that its metadata names) ends with the same bits.
static void test_rewrites(void) {
    #define EXCHANGE {"query.w", "#"}, {"key.w", "query.w"}, {"#", "key.w"}
    #define STRANGE "q\"\\\xc3\xbc\xf0\x9f\x98\x80" // a name with all that JSON escapes
    static const struct { const char *edits[4][2], *space; int order; bool moved; } rewrites[] = {
        {{{"{", "{"}}, "", 0, false},                                  // the same without padding
        {{{"{", "{"}}, "", 1, false},                                  // sorted keys
        {{{"{", "{"}}, "", -1, false},                                 // reversed keys
        {{{"{", "{"}}, " \n\t\r ", 0, false},                          // indented
        {{EXCHANGE}, NULL, 0, true},                                   // data in another order
        {{EXCHANGE}, "\n  ", 1, true},                                 // all of these
        {{{"'shape':[1,", "'shape':["}}, NULL, 0, false},              // biases of one dimension
        {{{"{'__metadata__':{", "{'__metadata__':{'writer':'other 1.0',"}}, NULL, 0, false},
        {{{"'format'", "'note':'\\'width\\':\\'3\\', \\\\\\'heads\\'','format'"}}, NULL, 0, false},
        {{{"'./q", "'.\\/q"}}, NULL, 0, false},                        // escapes
        {{{"\xc3\xbc\xf0\x9f\x98\x80", "\\u00fc\\uD83D\\ude00"}}, NULL, 0, false},
        {{{"./q", "\\u002e\\u002f\\u0071"}}, NULL, 0, false},
        {{{"lipgpt 3", "lipgpt 2"}, {"'residual':'convex'", "'plain-residual':'0'"},
          {"'alpha'", "'residual'"}, {"'momentum'", "'beta'"}}, NULL, 0, false},
    };
    char *text = contents("text", &model_size);
    put(STRANGE, text, model_size), free(text);
    gives(0, "fresh.st", "train --data ./" STRANGE " --residual convex --attention-blocks 0 "
          SHAPE "--value-ratio 1 --optimizer adamw --lr 0.01 --steps 4 --stop 2 --eval-windows 0 "
          "--out fresh.st --log r.log");
    gives(0, "done.st", "train --resume fresh.st --log r.log --out done.st");
    gives(0, "certificate\t", "certify --model fresh.st");
    put("certified", output, strlen(output));
    for (size_t i = 0; i < LENGTH(rewrites); i++) {
        load_model("fresh.st");
        char *header = edited(model_header, "{", "{", 1);
        if (rewrites[i].moved) exchange();
        for (int e = 0; e < 4 && rewrites[i].edits[e][0]; e++) {
            char *next = edited(header, rewrites[i].edits[e][0], rewrites[i].edits[e][1], 1000);
            free(header), header = next;
        }
        const char *at = header, *space = rewrites[i].space;
        char *written = space ? reformat(&at, rewrites[i].order, space) : NULL;
        const char *final = written ? written : header;
        forge(final, strlen(final), strlen(final));
        gives(0, "certificate\t", "certify --model bad.st");
        put("again", output, strlen(output));
        expect(same("certified", "again"));
        gives(0, "again.st", "train --resume bad.st --log r.log --out again.st");
        check(same("done.st", "again.st"), "rewrite %zu", i);
        free(header), free(written);
    }
}

#define HOSTILE(reason) gives(1, reason, "certify --model bad.st")

// Cut off anywhere, or not a checkpoint at all.
static void test_truncated(void) {
    static const char page[] = "<!DOCTYPE html><html><body>404: not found</body></html>\n";
    static const uint64_t lengths[] = {0, 1, UINT64_MAX, UINT64_MAX - 7, 1ull << 63, 100000001,
                                       99999999};
    for (size_t n = 0; n < model_size; n += n < 16 || n > 8 + header_size ? 1 : STRIDE) {
        put("bad.st", model, n);
        HOSTILE("bad.st");
    }
    for (size_t n = 0; n < header_size - 10; n += CUT) { // and with an honest length
        forge(model_header, n, n);
        HOSTILE(n < 2 ? "header" : "bad.st: ");
    }
    put("bad.st", model, model_size + 1); // contents() left a 0 there
    HOSTILE("bytes of data");
    put("bad.st", page, sizeof page - 1);
    HOSTILE("not a safetensors file");
    for (size_t i = 0; i < LENGTH(lengths); i++) {
        forge(model_header, header_size, lengths[i]);
        HOSTILE("header");
    }
    forge(model_header, header_size, header_size - 8); // data begin early
    HOSTILE("bad.st");
    for (int n = 1; n <= 64; n++) { // a string that ends with half of a character and the header
        char text[128];
        snprintf(text, sizeof text, "{\"format\":\"lipgpt %0*d\\ud83d\\u1", n, 3);
        forge(text, strlen(text), strlen(text));
        HOSTILE("format");
    }
}

// One lie at a time in an otherwise valid header: a row is what stands there, what is said of the
// lies, and the lies, with | between them; ' stands for ".
static void test_lies(void) {
    #define PLACE(sizes, offsets) "[" sizes "],'data_offsets':[" offsets "]"
    static const char *const lies[][3] = {
        {"{'__meta", "header", "['__meta"},
        {"'dtype':'F32'", "embedding.weight has dtype F16, expected F32", "'dtype':'F16'"},
        {"'dtype':'F32'", "embedding.weight has dtype", "'dtype':32|'dtypo':'F32'|'type':'F32'"},
        {"'dtype':'F32',", "embedding.weight has dtype none", "|'dtype':null,"},
        {"'dtype':'F32'", "dtype stands twice", "'dtype':'F32','dtype':'F32'"},
        {"'dtype':'F32'", "dtype F??[31m16", "'dtype':'F\\n\\u001b[31m16'"},
        {PLACE("2,2", "0,16"), "offsets", PLACE("2,2", "0,12") "|" PLACE("2,2", "16,0")},
        {PLACE("2,2", "0,16"), "offsets", PLACE("2,2", "0") "|" PLACE("2,2", "-16,0")},
        {PLACE("2,2", "0,16"), "offsets 999984 to 1000000", PLACE("2,2", "999984,1000000")},
        {PLACE("2,2", "0,16"), "offsets", PLACE("2,2", "0,18446744073709551632")},
        {PLACE("2,2", "0,16"), "offsets", PLACE("2,2", "18446744073709551600,16")},
        {PLACE("2,2", "0,16"), "overlap", PLACE("2,2", "4,20") "|" PLACE("2,2", "16,32")},
        {PLACE("2,2", "16,32"), "overlap", PLACE("2,2", "0,16") "|" PLACE("2,2", "8,24")},
        {PLACE("2,2", "0,16"), "embedding.weight is 3 x 2", PLACE("3,2", "0,16")},
        {PLACE("2,2", "0,16"), "weight is 1 x 4", PLACE("1,4", "0,16") "|" PLACE("4", "0,16")},
        {PLACE("2,2", "0,16"), "embedding.weight is", PLACE("", "0,16") "|" PLACE("2,2,1", "0,16")},
        {PLACE("2,2", "0,16"), "embedding.weight is", PLACE("-2,-2", "0,16")},
        {PLACE("2,2", "0,16"), "4294967298 x 2", PLACE("4294967298,2", "0,16")},
        {PLACE("2,2", "0,16"), "4611686018427387905 x 4", PLACE("4611686018427387905,4", "0,16")},
        {PLACE("2,2", "0,16"), "embedding.weight is", PLACE("18446744073709551618,2", "0,16")},
        {"'embedding.weight'", "embedding.weight is missing", "'head.weight'|'embedding.height'"},
        {"'embedding.weight':{", "embedding.weight is missing", "'embedding.weight':[{"},
        {"'embedding.weight':", "head.weight stands twice", "'head.weight':0,'embedding.weight':"},
        {"'momentum.head.weight'", "momentum.head.weight is missing", "'momentum.head'"},
        {"'width':'2'", "width stands twice", "'width':'2','width':'2'"},
        {"'width':'2'", "width is not a string", "'width':2|'width':'\\q'"},
        {"'width':'2'", "width is not a string", "'width':'\\u12'|'width':'2\n'"},
        {"'width':'2',", "width is missing", "|'height':'2',"},
        {"'width':'2'", "width takes an integer", "'width':'1e9'|'width':'nan'|'width':''"},
        {"'width':'2'", "is odd", "'width':'3'"},
        {"'heads':'1'", "heads", "'heads':'0'|'heads':'x'"},
        {"'heads':'1'", "is odd", "'heads':'2'"},
        {"'width':'2'", "bytes of data", "'width':'4'|'width':'65536'"},
        {"'blocks':'1'", "bytes of data", "'blocks':'2'"},
        {"'blocks':'1'", "blocks", "'blocks':'-1'"},
        {"'bias':'0'", "bytes of data", "'bias':'1'"},
        {"'context':'2'", "context", "'context':'65537'"},
        {"'activation':'gelu'", "activation", "'activation':'relu'"},
        {"'optimizer':'muon'", "bytes of data", "'optimizer':'adamw'"},
        {"'lr':'", "lr takes", "'lr':'nan|'lr':'-"},
        {"'step':'2'", "metadata step", "'step':'-2'|'step':'2x'|'step':'2147483648'"},
        {"'rng':'", "metadata rng", "'rng':'99999999999999999999"},
        {"lipgpt 3", "format lipgpt 9", "lipgpt 9"},
        {"'format':", "format is missing", "'from':"},
        {"'vocabulary_size':'2'", "vocabulary", "'vocabulary_size':'3'|'vocabulary_size':'1'"},
        {"'vocabulary_size':'2'", "vocabulary_size", "'vocabulary_size':'4294967298'"},
        {"'6162'", "the vocabulary is not 2 rising bytes", "'616'|'61zz'|'6161'"},
    };
    for (size_t i = 0; i < LENGTH(lies); i++)
        for (const char *lie = lies[i][2], *end; lie; lie = *end ? end + 1 : NULL) {
            char to[256];
            end = lie + strcspn(lie, "|");
            snprintf(to, sizeof to, "%.*s", (int)(end - lie), lie);
            char *header = edited(model_header, lies[i][0], to, 1);
            forge(header, strlen(header), strlen(header));
            HOSTILE(lies[i][1]);
            free(header);
        }
}

// put_number: bad.st, the model with another number at a byte, from the start of its data or, if
// below 0, from its end.
static void put_number(long at, double number) {
    float value = (float)number;
    char *bytes = memcpy(allocate(model_size, 1), model, model_size);
    memcpy(at < 0 ? bytes + model_size + at : bytes + 8 + header_size + at, &value, sizeof value);
    put("bad.st", bytes, model_size), free(bytes);
}

// Weights and momenta must be finite numbers, mean squares not negative; which one is not is said.
// Weights outside of their caps are not trained on: no certificate would hold, and the soft cap
// diverges far outside. Measuring them is fine.
static void test_numbers(void) {
    static const double bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        put_number(0, bad[i]), HOSTILE("tensor embedding.weight has");
        put_number(-4, bad[i]), HOSTILE("tensor momentum.head.weight has");
    }
    put_number(0, 100);
    gives(1, "times its cap", "train --resume bad.st --steps 9 --log caps");
    gives(0, "not constrained", "certify --model bad.st");
    gives(0, "", "train --data two " SHAPE "--optimizer adamw --steps 1 --tokens 9 --out adam.st");
    load_model("adam.st"); // ends with the mean squares
    put_number(-4, -1), HOSTILE("tensor second.head.bias has -1");
}

// Random damage to the header, flips and splices: refused, or harmless; never a crash.
static void test_fuzz(void) {
    Rng rng = {1};
    int accepted = 0, refusals = 0;
    for (int i = 0; i < FUZZ; i++) {
        char *header = memcpy(allocate(header_size, 1), model_header, header_size);
        for (int edits = 1 + i % 3; edits > 0; edits--) {
            size_t at = rng_below(&rng, header_size), from = rng_below(&rng, header_size);
            size_t n = rng_below(&rng, 12) + 1, last = at > from ? at : from;
            if (i % 2) memmove(header + at, header + from, header_size - last < n ? 1 : n);
            else header[at] = (char)(header[at] ^ 1 << rng_below(&rng, 8));
        }
        forge(header, header_size, header_size), free(header);
        int status = execute("certify --model bad.st");
        accepted += status == 0, refusals += status == 1;
        expect(status == 0 ? !*errors : status == 1);
        if (status) refused();
    }
    expect(accepted > 0 && refusals > FUZZ / 2);
}

// --- Command line: every mistake has its own answer, with status 2, and names the key. A row is a
// line, what may stand in place of %s in it, and what is said of each, with or without a %s, too.
static void test_arguments(void) {
    static const char *const bad[][3] = {
        {"%s", "dance", "%s is not a command"},
        {"%s 3", "--steps -steps", "not a command"},
        {"train %s", "--colour red -steps --step --stepss=3 --=3 - -- --prompt", "%s is not an"},
        {"sample %s 3", "--steps --windows", "%s is not an option"},
        {"certify %s 1", "--search-steps --seed", "%s is not an option"},
        {"eval %s 1", "--windows --steps", "%s is not an option"},
        {"train %s", "--steps --data --activation --bias", "%s needs a value"},
        {"certify %s", "--windows --model", "%s needs a value"},
        {"train --steps %s", "x 3x 2.5 0 -1 1e300 nan inf", "--steps takes an integer from 1"},
        {"train --lr %s", "fast nan -0.1 1e999", "--lr takes a number from 0"},
        {"train --width %s", "1 99999999999", "--width takes an integer from 2"},
        {"train --bias %s", "2 yes -1", "--bias takes an integer from 0 to 1"},
        {"train %s", "--steps= --momentum=1 --temperature=-1 --seed=-1 --lipschitz=-1", "--"},
        {"train --alpha %s", "1", "--alpha"}, // keeps nothing: no gradient ever reaches a weight
        {"train --steps 3 --steps %s", "3 4", "--steps is given twice"},
        {"train --activation%s", "=relu =gel =", "|maxmin"},
        {"train --preset %s", "best tigh", "--preset"},
        {"train --data text --width 16 --heads %s", "3 5", "--heads %s does not divide --width 16"},
        {"train --data text --width 6 --heads %s", "2", "head width 6 / 2 = 3 is odd"},
        {"train --lipschitz 10 --residual convex %s 1", "--cap --cap-v", "%s"},
        {"train --lipschitz 9 %s 0", "--cap-v --cap-in --cap-embed --cap-bias", "with %s 0"},
        {"train --lipschitz 9 --constraint %s", "hammer decay", "%s"},
        {"train --data text --context 8 --lipschitz %s", "1e-09", "--lipschitz %s is too small"},
        {"train --data text --cap-v %s", "1e-30", "a cap of %s"},
    };
    for (size_t i = 0; i < LENGTH(bad); i++)
        for (const char *word = bad[i][1]; *word; word += strspn(word, " ")) {
            int length = (int)strcspn(word, " ");
            const char *at = strstr(bad[i][0], "%s"), *said = strstr(bad[i][2], "%s");
            char reason[256];
            snprintf(reason, sizeof reason, "%s", bad[i][2]);
            if (said)
                snprintf(reason, sizeof reason, "%.*s%.*s%s", (int)(said - bad[i][2]), bad[i][2],
                         length, word, said + 2);
            gives(2, reason, "%.*s%.*s%s", (int)(at - bad[i][0]), bad[i][0], length, word, at + 2);
            word += length;
        }
    expect(execute("") == 2 && *errors && !*output); // usage
    gives(0, "--softmax-scale", "--help");
    gives(0, "--prompt", "sample --seed 3 --help");
    expect(!*errors);
    // beyond all memory, and all addresses
    expect(execute("train --data text --preset paper --width 65536 --heads 1 --blocks 1024") == 1);
    says("lipgpt: out of memory: "), says(" MB were wanted; choose a smaller width");
}

// Without options the preset is tight, its budget 100; --help shows where the paper's differs. The
// smallest budget that a refusal names must itself be accepted, and then held.
static void test_defaults(void) {
    static const char *const wanted[][2] = {
        {"preset", "tight"}, {"lipschitz", "100"}, {"batch", "16"}, {"eval-every", "200"}};
    #define LEAST "train --data text --width 16 --heads 2 --blocks 1 --context 8 --steps 1 " \
                  "--tokens 9 --out d.st "
    gives(0, "certificate\t", LEAST);
    for (int i = 0; i < 4; i++) holds("d.st", wanted[i][0], wanted[i][1]);
    gives(0, "certificate\t", LEAST "--cap 1");
    holds("d.st", "lipschitz", "0"), holds("d.st", "cap-v", "1"); // the budget gives way to a cap
    gives(0, "[16; paper: 64]", "train --help"), says("[200; paper: 100]");
    for (int i = 0; i < 2; i++) {
        char least[32] = "";
        gives(2, "smallest possible", LEAST "--preset %s --lipschitz 1e-9", preset_words[i]);
        const char *at = strstr(errors, "settings is ");
        expect(at && sscanf(at, "settings is %31[0-9.e+-]", least) == 1);
        gives(0, "certificate\t", LEAST "--preset %s --lipschitz %s", preset_words[i], least);
        at_most(printed("certificate"), strtod(least, NULL), "the smallest budget");
    }
    // a cap of nothing holds nothing up
    gives(0, "certificate\t", LEAST "--lipschitz 5 --cap-qk 0");
    gives(0, "certificate\t", LEAST "--lipschitz 0 --cap-qk 0 --position-only 1");
    expect(!strstr(output, "not constrained"));
    gives(2, "--cap-v 0", LEAST "--lipschitz 5 --cap-v 0");
}

// column: the largest number in a column of the log, by its name; and that the log has its header,
// then rows of as many columns, at steps every, 2 every ... last.
static double column(const char *path, const char *name, int every, int last) {
    static const char header[] = "step\ttokens\ttrain_loss\tfull_loss\tfull_accuracy\tcertificate";
    size_t n = 0;
    char *log = contents(path, &n), *at = log ? strstr(log, name) : NULL, *row = log;
    int step = 0, tabs[2] = {0}, wanted = 0;
    double most = -INFINITY;
    expect(at && !strncmp(log, header, sizeof header - 1));
    for (char *p = log; at && *p != '\n'; p++)
        tabs[0] += *p == '\t', wanted += *p == '\t' && p < at;
    while (at && (row = strchr(row, '\n')) && *++row) {
        step += every, tabs[1] = 0;
        check(strchr(row, '\n') && atoi(row) == step, "%s: no step %d", path, step);
        for (char *p = row; *p && *p != '\n'; p++)
            if (*p == '\t' && ++tabs[1] == wanted) most = worse(most, strtod(p + 1, NULL));
        expect(tabs[1] == tabs[0]);
    }
    check(step == last, "%s ends at step %d, not %d", path, step, last);
    free(log);
    return most;
}

static void all_results(void) { // of the last run
    static const char *const names[] = {
        "full_loss", "full_accuracy", "slice_loss", "slice_accuracy", "largest_activation",
        "certificate", "certificate_log10", "paper_bound", "paper_bound_log10"};
    for (size_t i = 0; i < LENGTH(names); i++) expect(isfinite(printed(names[i])));
    double full = printed("full_correct") / printed("full_positions");
    double slice = printed("slice_correct") / printed("slice_positions");
    at_most(fabs(full - printed("full_accuracy")), 5.1e-5, "the full split's counts");
    at_most(fabs(slice - printed("slice_accuracy")), 5.1e-5, "the slice's counts");
}

// --- A tiny run: what train, eval, certify and search write and where.
static void test_outputs(void) {
    size_t n = 0;
    gives(0, "checkpoint\ta/b/m.st\n", "train " NET "--steps=20 --eval-every 5 --tokens 40 --cap 1 "
          "--out a/b/m.st --log=a/c/log");
    double loss = printed("full_loss"), certificate = printed("certificate");
    all_results(), says("log\ta/c/log\n");
    expect(!strstr(output, "note\t") && !exists("a/b/m.st.tmp"));
    expect(loss > 0 && loss < log(16)); // better than uniform
    column("a/c/log", "lr", 5, 20);
    char *sample = contents("a/b/m.st.txt", &n);
    expect(sample && n == 41); // tokens and a new line
    free(sample);
    gives(0, "data\ttext\n", "eval --data text --model a/b/m.st");
    all_results();
    gives(0, "data\ttext\n", "eval --model a/b/m.st"); // the text it was trained on
    expect(printed("full_loss") == loss && printed("certificate") == certificate);
    gives(0, "\neps\tcertified_accuracy\t", "certify --data text --model a/b/m.st --windows 2");
    says("\nweight\tlower\tupper\tcap\n"), says("\nblocks.0.attention\t"), says("\nhead\t");
    expect(printed("certificate") == certificate && printed("blocks.0.mlp.in.weight") <= 1);
    expect(printed("0.5") <= printed("0.01") && printed("0.01") <= printed("0"));
    gives(1, "none.st", "eval --data other --model none.st");
    gives(1, "vocabulary", "eval --data all --model a/b/m.st");
    for (int length = 20; length <= 80; length += 60) { // a validation split of 2 tokens, then of 8
        put("split", "to be or not to be that is a dream\nto be or not to be that is a dream\n"
            "to be or not", (size_t)length);
        gives(0, "certificate\t", "certify --data split --model a/b/m.st");
        if (!searcher) continue;
        gives(0, "lower_bound", "search --data split --model a/b/m.st --search-steps 1");
    }
}

// The bounds of a checkpoint's metadata are bounds, too: never rounded down.
static void test_saved_bounds(void) {
    Data data;
    Progress progress;
    Model *m = checkpoint_load("a/b/m.st", &data, &progress);
    Certificate k;
    for (int i = 0; i < 10; i++) {
        Tensor *head = tensor(m, W_HEAD, 0);
        scale_by(m->weights + head->offset, head->size, 1.1);
        certify(m, &k);
        checkpoint_save("bounds.st", m, &data, &progress, &k);
        File f = open_tensors("bounds.st");
        double sound = strtod(metadata_of(&f, "certificate_log10", NULL), NULL);
        double paper = strtod(metadata_of(&f, "paper_bound_log10", NULL), NULL);
        expect(sound >= k.log10_sound && sound < k.log10_sound + 2e-9);
        expect(paper >= k.log10_paper && paper < k.log10_paper + 2e-9);
        free(f.header), free(f.bytes);
    }
    model_free(m);
}

// search: a lower bound below the certificate, its pair, and an attack beside what is certified.
static void test_search(void) {
    if (!searcher) return;
    #define HUNT "search --model a/b/m.st "
    gives(0, "pair\ta/p.st\n", HUNT "--data text --search-steps 5 --windows 2 --pair a/p.st");
    double lower = printed("lower_bound"), certificate = printed("certificate");
    expect(lower > 0 && lower <= certificate && exists("a/p.st"));
    near(printed("certificate_over_lower_bound"), certificate / lower, 1e-3, "their ratio");
    const char *table = strstr(output, "\neps\tcertified_accuracy\taccuracy_under_attack");
    expect(table != NULL);
    for (int i = 0; table && i < 7; i++) {
        double eps = 0, certified = 0, held = 0;
        table = strchr(table + 1, '\n');
        expect(table && sscanf(table, "%lf %lf %lf", &eps, &certified, &held) == 3);
        at_most(certified, held, "certified accuracy and accuracy under attack");
    }
    gives(1, "a/p.st", "eval --data text --model a/p.st"); // a pair is not a model
    gives(0, "lower_bound\t", HUNT "--search-steps 2 --seed 3"); // without data no attack
    expect(!strstr(output, "eps\t"));
    gives(0, "full_loss\t", HUNT "--data text --search-steps 0 --windows 0");
    expect(!strstr(output, "lower_bound") && !strstr(output, "eps\t"));
    gives(2, "p.st", HUNT "--search-steps 0 --pair p.st");
    gives(2, "--steps is not", HUNT "--steps 3");
    gives(2, "--seed takes", HUNT "--seed -1");
    gives(1, "none.st", "search --model none.st");
    gives(1, "one file", HUNT "--search-steps 1 --pair a/b/m.st");
    gives(1, "one file", HUNT "--data text --pair text --search-steps 1");
}

// Samples: the seed decides, temperature 0 is greedy, a prompt comes first and must be known.
static void test_sample(void) {
    static const char *const runs[] = {"--seed 7", "--seed 7", "--seed 8",
                                       "--temperature 0 --seed 1", "--temperature=0 --seed=2"};
    char text[5][128] = {""};
    for (int i = 0; i < 5; i++) {
        gives(0, "that", "sample --model a/b/m.st --tokens 60 --prompt that %s", runs[i]);
        expect(!strncmp(output, "that", 4) && strlen(output) == 65);
        snprintf(text[i], sizeof text[i], "%.127s", output);
    }
    expect(!strcmp(text[0], text[1]) && strcmp(text[0], text[2]) && !strcmp(text[3], text[4]));
    gives(1, "byte 63", "sample --model a/b/m.st --prompt dr?am");
    gives(0, "is\n", "sample --model a/b/m.st --tokens 0 --prompt=is");
    expect(!strcmp(output, "is\n"));
    gives(0, "dream\nto\n", "sample --model a/b/m.st --tokens 0 --prompt=dream\nto");
    expect(!strcmp(output, "dream\nto\n"));
}

// --- Resuming: an interrupted run ends bit for bit like the other, and so does any thread count.
static void test_resume(void) {
    #define RUN "train --data text --preset tight --width 16 --heads 2 --blocks 2 " \
                "--context 8 --batch 9 --steps 20 --eval-every 5 --tokens 9 "
    #define ADAM RUN "--optimizer adamw --lr 0.01 "
    static const char *const ends[] = {"1.st", "2.st", "3.st"};
    size_t n = 0, m = 0;
    for (int i = 2; i >= 0; i--) {
        setenv("OMP_NUM_THREADS", (char[]){*ends[i], 0}, 1);
        gives(0, ends[i], RUN "--out %s --log whole", ends[i]);
        expect(same("3.st", ends[i])); // for any number of threads
    }
    gives(0, "stopped at step 0 of 20", RUN "--stop 0 --out zero.st --log zero");
    gives(0, "certificate\t", "eval --model zero.st");
    gives(0, "zero.st", "train --resume zero.st --log zero"); // from the initial values
    expect(same("1.st", "zero.st")), column("zero", "lr", 5, 20);
    gives(0, "--resume \"part.st\" --log", RUN "--stop 10 --out part.st --log parts");
    expect(!*output && !same("1.st", "part.st"));
    column("parts", "lr", 5, 10);
    char *before = contents("parts", &n);
    gives(0, "", "train --resume part.st --log parts --stop 15 --out later.st");
    column("parts", "lr", 5, 15);
    gives(0, "end.st", "train --resume part.st --log parts --out end.st"); // from 10: row 15 goes
    expect(same("1.st", "end.st") && same("1.st.txt", "end.st.txt"));
    column("parts", "lr", 5, 20);
    char *after = contents("parts", &m);
    expect(n < m && !memcmp(before, after, n)); // the rows up to there stay as they were
    free(before), free(after);
    gives(0, "later.st", "train --resume later.st --log more"); // --out is the resumed file
    expect(same("1.st", "later.st"));
    gives(0, "w.st", ADAM "--out w.st --log whole");
    gives(0, "h.st", ADAM "--stop 10 --out h.st --log parts");
    gives(0, "h.st", "train --resume h.st --log parts");
    expect(same("w.st", "h.st"));
    setenv("OMP_NUM_THREADS", "3", 1);
    gives(0, "h.st", ADAM "--out h.st --log parts");
    setenv("OMP_NUM_THREADS", "1", 1);
    expect(same("w.st", "h.st"));
    gives(2, "--lr", "train --resume part.st --lr 1");
    gives(2, "--context", "train --resume part.st --context=8");
    gives(1, "other", "train --resume part.st --data other");
    gives(1, "step 20 already", "train --resume end.st --steps 19");
    gives(0, "full_loss", "train --resume end.st --log parts --stop 15"); // which is over: repeated
    expect(same("1.st", "end.st"));
    gives(1, "none.st", "train --resume none.st");
}

// --- Options: every one of `train` is shown and taken, and what is saved is what was given.
static void test_options(void) {
    static const char line[] = "train --data text --val-data other --preset tight --steps 4 "
        "--batch 3 --context 6 "
        "--width 24 --heads 3 --blocks 2 --mlp-ratio 2 --alpha 0.25 --residual plain "
        "--value-ratio 2 --attention-blocks 1 --position-only 0 "
        "--attention-factor 0.5 --softmax-scale 2 --activation gelu --position-bias 1 --bias 1 "
        "--per-head 1 --lr 0.125 --momentum 0.75 --optimizer adamw --beta2 0.5 --constraint hard "
        "--spectral-decay 0.125 --mass 16 --weight-decay 0.0625 --share-embed 2 --share-head 3 "
        "--share-bias 0.5 --share-growth 8 --margin 0.5 --cap-qk 0.5 --cap-v 0.75 --cap-o 1.25 "
        "--cap-in 1.5 --cap-out 1.75 --cap-head 2.5 --cap-embed 0.875 --cap-bias 0.375 "
        "--lipschitz 0 --lanes 2 --seed 11 --eval-every 2 --eval-windows 5 --sample-every 3 "
        "--tokens 7 --temperature 0.5 --cap 3 --out o.st --log o.log --stop -1 ";
    char option[80], value[64];
    gives(0, "o.st", "%s", line);
    gives(0, "", "train --help");
    for (const Option *o = options; o < options + OPTIONS; o++) {
        if (!(o->use & TRAIN)) continue;
        snprintf(option, sizeof option, "--%s ", o->name);
        says(option);
        const char *at = strstr(line, option);
        bool elsewhere = !strcmp(o->name, "resume") || !strcmp(o->name, "vocabulary");
        check(at || elsewhere, "%shas no test here", option);
        if (!at || !(o->use & SAVED)) continue;
        sscanf(at + strlen(option), "%63s", value);
        holds("o.st", o->name, value);
    }
    gives(0, "certificate\t", "certify --model o.st");
}

// Both presets keep a budget in every row of the log, with each optimizer and each constraint that
// promises to hold. What promises nothing says so; and decay, which needs no cap, does its work.
static void test_budgets(void) {
    #define SHORT "train --data text " SHAPE "--tokens 9 --lipschitz 9 --out k.st --log k.log "
    #define THREE "train " NET "--steps 3 --tokens 9 --out k.st --log k.log "
    static const char *const free_runs[] = {
        "--optimizer adamw --constraint hammer", "--optimizer adamw --constraint decay", "--cap 0"};
    static const struct { const char *given, *residual, *position_only, *cap_v; } forms[] = {
        {"", "concat", "1", "1"}, {"--position-only 0", "concat", "0", "1"},
        {"--residual concat", "concat", "1", "1"}, {"--cap-v 0.75", "concat", "1", "0.75"},
        {"--residual convex", "convex", "1", "1"},
        {"--preset paper", "convex", "0", "1.2"}};
    static const char *const budgets[][4] = { // --lipschitz; what tight takes then
        {"2", "1", "1", "2000"}, {"4", "1.5", "1", "2000"}, {"10", "2.5", "0", "2000"},
        {"20", "2.5", "0", "500"}};
    for (size_t i = 0; i < LENGTH(budgets); i++) {
        gives(0, "k.st", "train --data text " SHAPE "--lipschitz %s --steps 1 --tokens 9 "
              "--out k.st --log k.log", budgets[i][0]);
        holds("k.st", "cap-in", budgets[i][1]), holds("k.st", "position-only", budgets[i][2]);
        holds("k.st", "share-embed", budgets[i][3]);
        holds("k.st", "momentum", i < 3 ? "0.97999999999999998" : "0.90000000000000002");
    }
    for (int i = 0; i < 18; i++) {
        const char *preset = preset_words[i < 2 ? i : (i - 2) / 8];
        int every = i < 2 ? 3 : 2, last = i < 2 ? 60 : 20;
        if (i < 2)
            gives(0, "k.st", SHORT "--preset %s --lr 0.5 --steps 60 --eval-every 3 "
                  "--share-embed 50 --share-head 50", preset);
        else
            gives(0, "k.st", SHORT "--steps 20 --eval-every 2 --preset %s --optimizer %s --lr %g "
                  "--constraint %s", preset, i % 2 ? "adamw" : "muon", i % 2 ? 0.03 : 0.5,
                  constraint_words[i / 2 % 4]);
        at_most(column("k.log", "certificate\t", every, last), 9, "K, logged");
        at_most(column("k.log", "largest_norm_over_cap", every, last), 1.005, "norm / cap");
        expect(!strstr(output, "note\t") && (i >= 2 || printed("certificate") > 5));
    }
    gives(2, "--cap-in is given, too", SHORT "--residual convex --cap-in 1.5");
    gives(2, "--cap-head is given, too", SHORT "--residual concat --cap-in 1.5 --cap-head 2");
    gives(2, "--cap is given, too", SHORT "--cap 1.5");
    for (size_t i = 0; i < LENGTH(forms); i++) { // tight's choice for a small K; what is given wins
        gives(0, "k.st", SHORT "--steps 1 %s", forms[i].given);
        holds("k.st", "residual", forms[i].residual), holds("k.st", "cap-v", forms[i].cap_v);
        holds("k.st", "position-only", forms[i].position_only);
    }
    gives(0, "k.st", "train --data text --width 16 --heads 2 --blocks 2 --context 8 --batch 4 "
          "--lipschitz 10 --residual concat --cap-in 1.5 --value-ratio 2 --attention-blocks 1 "
          "--position-only 1 --steps 60 --eval-every 3 --tokens 9 --out k.st --log k.log "
          "--cap-out 1 --lr 0.3");
    at_most(column("k.log", "certificate\t", 3, 60), 10, "K, logged");
    at_most(column("k.log", "largest_norm_over_cap", 3, 60), 1.005, "norm / cap");
    expect(!strstr(output, "note\t") && printed("certificate") > 5);
    holds("k.st", "cap-in", "1.5"), holds("k.st", "cap-out", "1"); // the head's alone is scaled
    gives(0, "blocks.1.mlp\t", "certify --model k.st");
    expect(strstr(output, "blocks.0.attention\t") && !strstr(output, "blocks.1.attention"));
    for (int i = 0; i < 3; i++) {
        gives(0, "note\tnot constrained", THREE "%s", free_runs[i]);
        expect(strstr(errors, "not constrained") != NULL);
    }
    gives(0, "note\tnot constrained", "certify --model k.st");
    gives(0, "", THREE "--optimizer adamw --constraint decay --spectral-decay 0.5 --cap 0");
    double decayed = printed("certificate_log10");
    gives(0, "", THREE "--optimizer adamw --cap 0");
    at_most(decayed, printed("certificate_log10") - 0.1, "decay without caps, log10 K");
}

// A run that diverges names step and tensor, stops, and keeps the checkpoint of the step before.
// Gradients near 1e20 are finite, their squares are not: what was saved can be read all the same.
static void test_divergence(void) {
    #define DIVERGE "train --preset paper --data text --width 16 --heads 2 --context 8 --batch 4 " \
                    "--cap 0 --eval-every 1 --log d.log %s --out %s --stop %d"
    static const char *const runs[] = {"--blocks 3 --lr 1e6 --steps 20",
                                       "--blocks 4 --residual plain --lr 1e6 --steps 20"};
    char line[1024];
    for (int i = 0; i < 2; i++) {
        int step = 0;
        snprintf(line, sizeof line, DIVERGE, runs[i], "d.st", 20);
        expect(execute(line) == 1 && !*output);
        const char *message = strstr(errors, "lipgpt: step ");
        expect(message && sscanf(message, "lipgpt: step %d", &step) == 1 && step > 1);
        says(".weight is not finite");
        expect(strstr(errors, "the weight of ") || strstr(errors, "the gradient of "));
        gives(0, "", DIVERGE, runs[i], "before.st", step - 1);
        expect(same("d.st", "before.st"));
    }
    const char *huge = "--blocks 3 --optimizer adamw --lr 10 --steps 12";
    snprintf(line, sizeof line, DIVERGE, huge, "v.st", 0);
    expect(execute(line) == 0 || strstr(errors, "is not finite"));
    gives(0, "certificate\t", "certify --model v.st");
}

// A build that lets NaN pass for a number stops at once.
static void test_fast_math(void) {
    bool ready = exists("../../lipgpt.c") && execute("!cc --version") == 0;
    if (!ready) printf("-ffast-math is not tested: no cc, or no lipgpt.c here\n");
    if (!ready) return;
    expect(execute("!cc -std=c11 -fsyntax-only ../../lipgpt.c") == 0);
    expect(execute("!cc -std=c11 -ffast-math -fsyntax-only ../../lipgpt.c") != 0);
    says("-ffast-math let");
}

// --- Nothing lost. temporaries: how many files of a folder begin so and are being written.
static int temporaries(const char *folder, const char *start) {
    int count = 0;
    char wanted[256];
    snprintf(wanted, sizeof wanted, "%s.tmp.", start);
    DIR *all = opendir(folder);
    for (struct dirent *entry; all && (entry = readdir(all));)
        count += !strncmp(entry->d_name, wanted, strlen(wanted));
    if (all) closedir(all);
    return count;
}

// What a command reads is never what it writes, however it is called; what only looks like a
// temporary of ours is left alone; and no file is written that nobody asked for.
static void test_own_files(void) {
    #define BRIEF "train --preset paper " SHAPE "--lr 0.1 --sample-every 0 --steps 2 --tokens 9 "
    static const struct { const char *line, *reason; } refusals[] = {
        {BRIEF "--data text --out own/a --log own/./a", "one file"},
        {BRIEF "--data text --out own/a --log ./own/a.txt", "one file"},
        {BRIEF "--data text --out own/new/a --log own/new/../new/a", "one file"},
        {BRIEF "--data text --out own/a --log same/a", "one file"},
        {BRIEF "--data own/c --out own/d --log ./own/c", "one file"},
        {BRIEF "--data own/c.txt --out own/c", "one file"},
        {BRIEF "--data own/c --out hard --log own/l", "one file"},
        {BRIEF "--data own/c --out soft --log own/l", "one file"},
        {"train --resume own/r --out own/y --log own/r", "one file"},
        {"train --resume own/r --out own/y --log ./own/../own/r", "one file"},
        {"train --resume own/r --log own/r", "one file"},
        {"train --resume own/s.txt --out own/s --log own/l", "one file"},
        {"train --resume own/r --data own/y --out own/y --log own/l", "one file"},
        {"search --model own/r --search-steps 1 --pair same/r", "one file"},
        {"search --model own/r --data own/c --search-steps 1 --pair own/./c", "one file"},
    };
    static const struct { const char *line; bool kept; } runs[] = {
        {BRIEF "--data own/c.tmp --out own/c --log own/l", true},
        {BRIEF "--data own/c.tmp --out own/d --log own/c", true},
        {"search --model own/p.tmp --search-steps 1 --pair own/p", true},
    };
    struct stat status;
    gives(0, "", "train " NET "--steps 4 --stop 2 --out own/r --log own/l");
    expect(!symlink("own", "same") && !link("own/l", "hard"));
    copy("text", "own/c"), copy("text", "own/c.txt"), copy("text", "own/y");
    copy("text", "own/c.tmp"), copy("own/r", "own/s.txt"), copy("own/r", "own/p.tmp");
    remove("hard"), expect(!link("own/c", "hard") && !symlink("own/c", "soft"));
    copy("own/r", "r.kept");
    for (size_t i = 0; i < LENGTH(refusals); i++) {
        if (!searcher && *refusals[i].line == 's') continue;
        gives(1, refusals[i].reason, "%s", refusals[i].line);
        expect(same("own/r", "r.kept") && same("own/s.txt", "r.kept") && same("own/c", "text"));
        expect(same("own/c.txt", "text") && same("own/y", "text"));
    }
    for (size_t i = 0; i < LENGTH(runs); i++) {
        if (searcher || *runs[i].line != 's') gives(0, "", "%s", runs[i].line);
        expect(same("own/c.tmp", "text") && same("own/p.tmp", "r.kept"));
    }
    copy("text", "kept.txt"), expect(!symlink("kept.txt", "own/z.tmp")); // was truncated
    umask(027);
    gives(0, "", BRIEF "--data text --out own/z --log own/z.log");
    umask(022);
    expect(same("kept.txt", "text") && stat("own/z", &status) == 0);
    check((status.st_mode & 0777) == 0640, "mode %o", (unsigned)status.st_mode & 0777);
    char taken[64]; // a temporary's name that is taken is left alone, and the next one serves
    snprintf(taken, sizeof taken, "own/t.tmp.%ld.0", (long)getpid()), copy("text", taken);
    FILE *file = open_file("own/t");
    finish_file(file, "own/t"), fclose(file);
    expect(same(taken, "text") && exists("own/t") && !same("own/t", "text"));
    expect(named_first); // so that two signals at any moment remove it, and no other file
    gives(0, "", "train --resume own/r --out own/../own/r --log own/l"); // its own: no other file
    expect(temporaries("own", "r") == 0 && temporaries("own", "z") == 0);
    const char *line = "!strace -qq -e trace=fsync,openat,/rename -o trace ";
    char traced[4096];
    if (execute("!strace -qq -o trace true") != 0) return; // renamed, then the folder is synced
    snprintf(traced, sizeof traced, "%s%s " BRIEF "--data text --out own/w --log l", line, binary);
    expect(execute(traced) == 0); // LeakSanitizer cannot work under strace
    size_t n = 0;
    char *trace = contents("trace", &n), *at = trace ? strstr(trace, "\"own/w\")") : NULL;
    expect(at && (at = strchr(at, '\n')) && !strncmp(at + 1, "openat(AT_FDCWD, \"own/\"", 23));
    expect(at && (at = strchr(at + 1, '\n')) && !strncmp(at + 1, "fsync(", 6));
    free(trace);
    const char *script = "exec strace -D -qq -o trace -P own/v.tmp.$$.0 "
                         "-e inject=openat:signal=INT:when=1 \"$@\"\n"; // in check_places
    put("interrupt", script, strlen(script));
    line = "!sh interrupt";
    snprintf(traced, sizeof traced, "%s %s " BRIEF "--data text --out own/v --log l", line, binary);
    expect(execute(traced) == 130 && exists("own/v") && temporaries("own", "v") == 0);
}

static void pause_ms(int milliseconds) {
    struct timespec wait = {milliseconds / 1000, milliseconds % 1000 * 1000000l};
    while (nanosleep(&wait, &wait) != 0) {}
}

static void wait_for(const char *path) { // until it is there: 100 s at most
    for (int i = 0; i < 50000 && !exists(path); i++) pause_ms(2);
}

// stop_in_save: stops the child while it writes folder/name, not for the first time; or it ended.
static bool stop_in_save(const char *folder, const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    for (int i = 0; i < 200000 && waitpid(child, NULL, WNOHANG) == 0; i++) {
        if (temporaries(folder, name) == 0) continue;
        kill(child, SIGSTOP), waitpid(child, NULL, WUNTRACED);
        if (exists(path) && temporaries(folder, name) > 0) return true;
        kill(child, SIGCONT);
    }
    return false;
}

// Two runs with one --out: A is stopped in the middle of a save, B runs to its end, A goes on. The
// file is whole and B's, then whole and A's.
static void test_two_runs(void) {
    #define WIDE "train --preset paper --data text --width 64 --heads 2 --blocks 2 --context 8 " \
                 "--batch 1 --eval-every 1 --sample-every 0 --tokens 9 "
    gives(0, "", WIDE "--steps 40 --out both/only.st --log both/only.log");
    gives(0, "", WIDE "--steps 2 --out both/other.st --log both/other.log");
    start(WIDE "--steps 40 --out both/m.st --log both/a.log");
    pid_t first = child;
    bool caught = stop_in_save("both", "m.st");
    check(caught, "no save could be stopped in its middle");
    gives(0, "both/m.st", WIDE "--steps 2 --out both/m.st --log both/b.log");
    expect(same("both/m.st", "both/other.st") && temporaries("both", "m.st") == 1);
    child = first, kill(child, SIGCONT), alarm(120);
    expect(finish() == 0);
    expect(same("both/m.st", "both/only.st") && same("both/m.st.txt", "both/only.st.txt"));
    expect(temporaries("both", "m.st") == 0);
    gives(0, "certificate\t", "certify --model both/m.st");
}

// in_shell: lipgpt with these arguments and redirections, after these commands; its exit status.
static int in_shell(const char *before, const char *line) {
    char script[4096];
    snprintf(script, sizeof script, "%sexec %s %s\n", before, binary, line);
    put("script", script, strlen(script));
    return execute("!sh script");
}

// Every signal that asks to stop saves and stops, with a status of its own; the resumed run ends in
// the same bits. A second one waits for nothing, and leaves no temporary behind.
static void test_signals(void) {
    #define LONG "train " NET "--steps 1500 --tokens 9 --eval-every 100 "
    static const int stops[] = {SIGINT, SIGTERM, SIGHUP};
    gives(0, "", LONG "--out stop/u --log stop/u.log");
    for (size_t i = 0; i < LENGTH(stops); i++) {
        leaks_matter = true; // what stops frees its memory
        remove("stop/s"), start(LONG "--out stop/s --log stop/s.log");
        wait_for("stop/s"), kill(child, stops[i]);
        check(finish() == 128 + stops[i], "signal %d", stops[i]);
        says("go on with: ./lipgpt train --resume \"stop/s\" --log \"stop/s.log\"");
        leaks_matter = false;
        expect(!*output && temporaries("stop", "s") == 0);
        gives(0, "stop/s", "train --resume stop/s --log stop/s.log");
        expect(same("stop/s", "stop/u"));
    }
    signal(SIGHUP, SIG_IGN), start(LONG "--out stop/n --log stop/n.log"); // nohup
    wait_for("stop/n"), kill(child, SIGHUP), signal(SIGHUP, SIG_DFL);
    expect(finish() == 0 && same("stop/n", "stop/u"));
    // while a sample is being written, between two reports: it begins after the first step's line
    remove("stderr");
    start("train --data text " SHAPE "--steps 99 --eval-every 99 --sample-every 1 "
          "--tokens 50000 --out stop/w --log stop/w.log");
    struct stat written = {0};
    for (int i = 0; i < 10000 && (stat("stderr", &written) || written.st_size < 2000); i++)
        pause_ms(2);
    kill(child, SIGINT), expect(finish() == 130 && exists("stop/w"));
    // a step of some seconds, and two signals that come together with one of them in its middle
    start("train --data text --preset paper --width 16 --heads 2 --blocks 1 --context 8 "
          "--batch 1000000 --steps 2 --out stop/b --log stop/b.log");
    wait_for("stop/b.log"), pause_ms(200), kill(child, SIGTERM), pause_ms(200);
    double begin = seconds();
    kill(child, SIGINT), expect(finish() == 130), at_most(seconds() - begin, 1, "a second signal");
    expect(!exists("stop/b") && temporaries("stop", "b") == 0);
    start("train " NET "--steps 1500 --eval-every 1 --out stop/t --log stop/t.log"); // in a save
    if (stop_in_save("stop", "t")) kill(child, SIGTERM), kill(child, SIGINT);
    kill(child, SIGCONT);
    int status = finish();
    check((status == 130 || status == 143) && !strstr(errors, "stopped"), "status %d", status);
    expect(temporaries("stop", "t") == 0);
    gives(0, "certificate", "certify --model stop/t");
}

// reported: how many rows of a log that are not in another, but for their last column, seconds.
static int reported(const char *path, const char *without) {
    size_t n = 0;
    int rows = 0;
    char *log = contents(path, &n), *other = contents(without, &n);
    for (char *row = log ? strtok(log, "\n") : NULL; row; row = strtok(NULL, "\n")) {
        char *seconds_at = strrchr(row, '\t');
        if (seconds_at) *seconds_at = 0;
        rows += !other || !strstr(other, row);
    }
    free(log), free(other);
    return rows;
}

// Killed, or asked to stop, at random moments, and gone on with from whatever was saved: the same
// bits, and a log with the same rows.
static void test_random_stops(void) {
    #define BITS "train " NET "--steps 400 --tokens 9 --eval-every 10 "
    Rng rng = {14};
    double begin = seconds();
    gives(0, "", BITS "--out stop/bits --log stop/bits.log");
    double whole = seconds() - begin;
    for (int i = 0, resumed = 0; i < 40 / THIN; i++) {
        remove("stop/r"), remove("stop/r.txt"), remove("stop/r.log");
        start(BITS "--out stop/r --log stop/r.log");
        pause_ms((int)(1000 * whole * rng_uniform(&rng)));
        kill(child, i % 2 ? SIGKILL : SIGTERM), finish();
        resumed += exists("stop/r");
        gives(0, "certificate\t", "%s", exists("stop/r") ? "train --resume stop/r --log stop/r.log"
              : BITS "--out stop/r --log stop/r.log");
        expect(same("stop/r", "stop/bits") && same("stop/r.txt", "stop/bits.txt"));
        expect(reported("stop/bits.log", "stop/r.log") == 0);
        expect(reported("stop/r.log", "stop/bits.log") == 0);
        if (i + 1 == 40 / THIN) check(resumed > i / 4, "%d of %d had a checkpoint", resumed, i + 1);
    }
}

// A limit of file size is a full disk: the old checkpoint stays whole, and results that cannot be
// written are a failure. A closed descriptor is no place for a file.
static void test_descriptors(void) {
    signal(SIGXFSZ, SIG_DFL); // as a shell leaves it
    gives(0, "", "train " NET "--steps 2 --out limit/f --log limit/l");
    copy("limit/f", "limit/kept");
    int status = in_shell("ulimit -f 8\n", "train " NET "--steps 3 --out limit/f --log limit/l");
    check(status == 1, "status %d", status);
    says("cannot write limit/f: File too large; make room");
    expect(same("limit/f", "limit/kept") && temporaries("limit", "f") == 0);
    status = in_shell("ulimit -f 2\n", "eval --data text --model limit/f"); // libomp needs it
    check(status == 1, "status %d", status), says("cannot write to the standard output");
    if (searcher && exists("/dev/full")) {
        char script[2400];
        snprintf(script, sizeof script, "exec %s --model limit/f --search-steps 1 > /dev/full\n",
                 searcher);
        put("script", script, strlen(script));
        status = execute("!sh script");
        check(status == 1, "status %d", status), says("cannot write to the standard output");
    }
    expect(in_shell("", "train " NET "--steps 6 --eval-every 2 --out limit/c --log limit/l "
                    "2>&- 0<&- >&-") == 0);
    column("limit/l", "lr", 2, 6);
    gives(0, "certificate", "certify --model limit/c");
}

// The windows of a split: the full one's have every target once; the slice's begin one token apart,
// end within it, and are at most 1280.
static void test_windows(void) {
    static const struct { size_t count; int full, slice; } splits[] = {
        {2, 1, 1},   {4, 1, 1},         {5, 1, 1},         {6, 2, 2},         {9, 2, 5},
        {10, 3, 6}, {1283, 321, 1279}, {1284, 321, 1280}, {1285, 321, 1280}, {1286, 322, 1280}};
    uint16_t tokens[1286] = {0};
    for (size_t i = 0; i < LENGTH(splits); i++) {
        Span split = {tokens, splits[i].count};
        size_t targets = 0;
        for (int w = 0; w < splits[i].full; w++)
            targets += window_of(split, FULL_SPLIT, 4, w, splits[i].full).count;
        int slice = splits[i].slice;
        size_t last = window_of(split, PAPER_SLICE, 4, slice - 1, slice).count;
        expect(window_count(split, FULL_SPLIT, 4) == splits[i].full && targets + 1 == split.count);
        expect(window_count(split, PAPER_SLICE, 4) == splits[i].slice);
        expect(last == (split.count < 5 ? split.count - 1 : 4));
    }
}

// evaluate, of some windows only: evenly spread over the split. (Of all: see test_outputs.)
static void test_part_of_split(void) {
    enum { WINDOWS = 11, SOME = 4 };
    static const int spread[SOME] = {0, 2, 5, 8};
    Config c = tiny(0);
    Lab lab = random_lab(&c, 5);
    uint16_t text[WINDOWS * 64 + 1];
    Span split = {text, (size_t)(WINDOWS * c.context) + 1};
    double loss = 0, *seen = take(2 * (size_t)c.blocks + 1, sizeof *seen);
    int correct = 0;
    for (size_t i = 0; i < split.count; i++) text[i] = (uint16_t)(i * i * 7 % (size_t)c.vocabulary);
    for (int i = 0; i < SOME; i++) {
        const uint16_t *window = text + spread[i] * c.context;
        loss += sequence_loss(lab.m, lab.s, window, window + 1, c.context, NULL, 1, &correct);
    }
    Score part = evaluate(lab.m, lab.s, split, FULL_SPLIT, SOME, seen);
    near(part.loss, loss / (SOME * c.context), 1e-12, "loss of four windows");
    near(part.accuracy, (double)correct / (SOME * c.context), 1e-12, "their accuracy");
    Score all = evaluate(lab.m, lab.s, split, FULL_SPLIT, 0, seen);
    Score most = evaluate(lab.m, lab.s, split, FULL_SPLIT, 512, seen);
    expect(all.loss == most.loss && all.accuracy == most.accuracy && all.loss != part.loss);
}

// Reports save first and may validate a part only, which they say; whatever a signal or a kill cuts
// off is made up for by the run that goes on: a row of the log, results, the sample.
static void test_reports(void) {
    #define SLOW "train --data much --preset paper --width 32 --heads 2 --blocks 2 --context 16 " \
                 "--batch 2 --sample-every 0 --tokens 9 --eval-every 2 --eval-windows 0 --steps 4 "
    char *text = contents("text", &(size_t){0}), much[400000];
    struct stat status;
    for (size_t i = 0; i < sizeof much; i++) much[i] = text[i % 5987];
    put("much", much, sizeof much), free(text);
    gives(0, "on 3 windows", "train " NET "--steps 4 --eval-every 2 --tokens 9 --eval-windows 3 "
          "--out part/p --log part/p.log");
    size_t n = 0;
    char *log = contents("part/p.log", &n);
    expect(log && strstr(log, "part_loss\tpart_accuracy\t") && !strstr(log, "full_loss"));
    free(log), holds("part/p", "eval-windows", "3");
    double part = printed("full_loss");
    gives(0, "", "train " NET "--steps 4 --eval-every 2 --tokens 9 --out part/f --log part/f.log");
    expect(printed("full_loss") == part && !strstr(errors, " windows")); // the end: all of it
    column("part/f.log", "full_loss", 2, 4);

    gives(0, "", SLOW "--out part/u --log part/u.log");
    put("results", output, (size_t)(strstr(output, "checkpoint") - output));
    // killed, or asked to stop, in the first validation: the checkpoint is there already
    for (int i = 0; i < 2; i++) {
        remove("part/s"), start(SLOW "--out part/s --log part/s.log"), wait_for("part/s");
        double begin = seconds();
        kill(child, i ? SIGKILL : SIGINT);
        expect(finish() == (i ? -SIGKILL : 130) && exists("part/s"));
        at_most(seconds() - begin, 1, "seconds to stop a validation");
        check(reported("part/u.log", "part/s.log") == 2, "the validation was too short to stop");
        gives(0, "full_loss", "train --resume part/s --log part/s.log");
        expect(same("part/s", "part/u") && same("part/s.txt", "part/u.txt"));
        expect(reported("part/u.log", "part/s.log") == 0);
        expect(reported("part/s.log", "part/u.log") == 0);
    }
    // stopped in the validation at the end, when the log is complete and the results are not
    start(SLOW "--out part/e --log part/e.log");
    for (int i = 0; i < 10000 && reported("part/u.log", "part/e.log") > 0; i++) pause_ms(2);
    kill(child, SIGTERM), expect(finish() == 143 && !*output && !exists("part/e.txt"));
    says("stopped at step 4 of 4; go on with: ");
    says("./lipgpt train --resume \"part/e\" --log \"part/e.log\"");
    // and finished: results, sample, and the same checkpoint again, also under another name
    for (int i = 0; i < 2; i++) {
        gives(0, "full_loss", "train --resume part/e --log part/e.log%s", i ? " --out part/g" : "");
        char *end = strstr(output, "checkpoint");
        put("again", output, end ? (size_t)(end - output) : 0);
        expect(same("again", "results") && same(i ? "part/g" : "part/e", "part/u"));
        expect(same(i ? "part/g.txt" : "part/e.txt", "part/u.txt"));
        column("part/e.log", "full_loss", 2, 4);
    }
    // stopped while the sample is written: there is none, rather than a part of it
    start("train " NET "--steps 4 --tokens 100000000 --out part/c --log part/c.log");
    wait_for("part/c");
    for (int i = 0; i < 10000 && temporaries("part", "c.txt") == 0; i++) pause_ms(2);
    kill(child, SIGTERM), expect(finish() == 143 && !exists("part/c.txt"));
    says("stopped at step 4 of 4"), expect(temporaries("part", "c.txt") == 0);
    FILE *file = fopen("huge", "wb");
    for (int i = 0; i < 20; i++) fwrite(much, 1, sizeof much, file);
    fclose(file);
    signal(SIGINT, SIG_DFL); // whatever started these tests
    start("eval --data huge --model part/e"), pause_ms(200);
    double begin = seconds();
    kill(child, SIGINT), expect(finish() == -SIGINT);
    at_most(seconds() - begin, 1, "seconds to stop eval");
    remove("part/h"), start("train --data huge --preset paper --width 32 --heads 2 --blocks 4 "
                            "--context 64 --batch 2 --eval-windows 0 --eval-every 1 --steps 2 "
                            "--out part/h --log part/h.log");
    wait_for("part/h"), begin = seconds(); // a validation of many seconds begins
    kill(child, SIGINT), expect(finish() == 130);
    at_most(seconds() - begin, 1, "seconds to stop a long validation");
    if (execute("!script --version") == 0) { // a terminal
        char line[4096], quoted[] = "-qec";
        snprintf(line, sizeof line, "%s eval --model part/e\n", binary);
        put("command", line, strlen(line)), chmod("command", 0777);
        snprintf(line, sizeof line, "!script %s ./command terminal", quoted);
        expect(execute(line) == 0);
        says("validation: 16 of "), says("\r\033[Kfull_loss");
    }
    expect(stat("part", &status) == 0 && temporaries("part", "e") == 0);
}

// copied: a file of the directory that the tests were started in, if it and a program are there.
static bool copied(const char *here, const char *name, const char *asking) {
    char path[2048];
    size_t size = 0;
    snprintf(path, sizeof path, "%s/%s", here, name);
    char *bytes = contents(path, &size);
    bool good = bytes && execute(asking) == 0;
    if (good) put(name, bytes, size);
    else printf("%s is not tested: %s\n", name, bytes ? errors : "it is not here");
    free(bytes);
    return good;
}

// A checkpoint of the format's first day, made by the program of that day: what it lacks means "as
// before". A setting that nobody here knows is refused; what is listed as none is not read.
static void test_old_checkpoint(const char *here) {
    #define OLD "dev/lipgpt-3.safetensors"
    mkdir("dev", 0777);
    if (!copied(here, OLD, "--help")) return;
    gives(0, "certificate\t", "certify --model " OLD);
    near(printed("certificate"), 0.0866849, 1e-5, "K of an old checkpoint");
    gives(0, "certificate\t", "train --resume " OLD " --out new.st --log new.log");
    double resumed = printed("certificate");
    for (const Option *o = options; o < options + OPTIONS; o++)
        if (o->use & LATER)
            holds("new.st", o->name, o->words ? o->words[0] : o->type == STRING ? ""
                                     : o->low > 0 ? "1" : "0");
    gives(0, "certificate\t", "train --data two --residual convex --width 4 --heads 2 --blocks 1 "
          "--context 2 --batch 2 --mlp-ratio 1 --tokens 5 --steps 4 --eval-every 2 --out fresh.st "
          "--lr 0.3 --alpha 0.5 --attention-blocks 0 --value-ratio 1 --cap-qk 0.077081454639699384 "
          "--cap-v 0.9 --cap-in 1.6187105474336869 --cap-out 1.6187105474336869 "
          "--cap-head 4.6248872783819621");
    near(resumed, printed("certificate"), 1e-4, "K of an old run that goes on");
    load_model(OLD);
    static const char *const kinds[] = {"convex", "plain"};
    for (int i = 0; i < 2; i++) { // which were plain-residual 0 and 1, listed as a setting or not
        const char *now = i ? "'settings':'plain-residual','plain-residual':'1'"
                            : "'plain-residual':'0'";
        char *old = edited(model_header, "'plain-residual':'0'", now, 1);
        forge(old, strlen(old), strlen(old)), free(old);
        gives(0, "certificate\t", "train --resume bad.st --out kind.st --log new.log");
        holds("kind.st", "residual", kinds[i]);
    }
    load_model("new.st");
    char *header = edited(model_header, "'settings':'", "'settings':'colour ", 1);
    forge(header, strlen(header), strlen(header)), free(header);
    gives(1, "bad.st: setting colour is not known here", "certify --model bad.st");
    header = edited(model_header, "'settings':'", "'colour':'blue','settings':'", 1);
    forge(header, strlen(header), strlen(header)), free(header);
    gives(0, "certificate\t", "certify --model bad.st");
}

// Data that is neither text nor a shard is refused by its name; what only looks binary is taken.
static void test_foreign(void) {
    #define MAGIC(text) text, sizeof text - 1
    static const struct { const char *start; size_t size; const char *name; } files[] = {
        {MAGIC("\xa1\xd9\x34\x01\7\0\0\0"), "uint32"}, // 20240801, little-endian
        {MAGIC("\x8a\xd8\x34\x01\1\0\0\0"), "evaluation set"},
        {MAGIC("\xc6\xd7\x34\x01"), "model of llm.c"},
        {MAGIC("\xc7\xd7\x34\x01"), "state of llm.c"},
        {MAGIC("\xc8\xd7\x34\x01"), "tokenizer of llm.c"},
        {MAGIC("\x93NUMPY\1\0v\0{'descr'"), "NumPy"},
        {MAGIC("PK\3\4\24\0"), "zip"},
        {MAGIC("\x1f\x8b\x08\0"), "gzip"},
        {MAGIC("\x28\xb5\x2f\xfd"), "zstd"},
        {MAGIC("\xfd" "7zXZ\0"), "xz"},
        {MAGIC("PAR1\x15\4"), "Parquet"},
        {MAGIC("%PDF-1.7"), "PDF"},
        {MAGIC("\x20\0\0\0\0\0\0\0{\"x\":"), "safetensors"},
        {MAGIC("<!DOCTYPE html><html>"), "HTML"},
        {MAGIC("\xef\xbb\xbf\r\n <!docType HTML>"), "HTML"},
        {MAGIC("<HTML lang=en>"), "HTML"},
        {MAGIC("\n<head>"), "HTML"},
    };
    static const struct { const char *start; size_t size; const char *said; } texts[] = {
        {MAGIC("to be \0 or not"), "looks binary, with its NUL bytes"},
        {MAGIC("\1\0\2\0\3\0"), "looks binary"},
        {MAGIC("abcdefgh{or not"), "vocabulary"},
        {MAGIC("PKzip < html, PAR1S, %PDF"), "vocabulary"},
        {MAGIC("\x88\xd8\x34 20240520"), "vocabulary"},
        {MAGIC("<header> of a play"), "vocabulary"},
    };
    char bytes[4000];
    for (size_t i = 0; i < LENGTH(files) + LENGTH(texts); i++) {
        bool text = i >= LENGTH(files);
        size_t k = text ? i - LENGTH(files) : i, size = text ? texts[k].size : files[k].size;
        for (size_t j = 0; j < sizeof bytes; j++) bytes[j] = "to be or not"[j % 12];
        memcpy(bytes, text ? texts[k].start : files[k].start, size);
        put("strange", bytes, sizeof bytes);
        gives(!text, text ? texts[k].said : files[k].name, BRIEF "--data strange --out e.st");
        expect(!text == !strstr(errors, "vocabulary"));
        if (text) expect(!strstr(texts[k].said, "binary") == !strstr(errors, "binary"));
    }
    gives(0, "all looks binary", BRIEF "--data all --out e.st");
    gives(0, "", BRIEF "--data shard --out e.st");
    expect(!strstr(errors, "binary"));
    gives(1, "trained on token numbers", "sample --model e.st --prompt a");
    gives(1, "e.st is a safetensors file, not text", "certify --model e.st --data e.st");
}

// Every path makes a header of valid UTF-8; one that is none is told about, and can be given again.
static void test_odd_paths(void) {
    static const struct { const char *path; bool good; } paths[] = {
        {"h\xc3\xa9 \xe2\x82\xac\xf0\x9f\x8c\x8d\xef\xbf\xbd\xf4\x8f\xbf\xbf", true},
        {"caf\xe9", false}, {"\x80", false}, {"a\xc3", false}, {"a\xc3(", false},
        {"\xc1\xbf", false}, {"\xe0\x9f\xbf", false}, {"\xed\xa0\x80", false},
        {"\xf0\x8f\xbf\xbf", false},
        {"\xf4\x90\x80\x80", false}, {"\xf5\x80\x80\x80", false}, {"\xe2\x82", false},
        {"\xff", false},
    };
    for (size_t i = 0; i < LENGTH(paths); i++) {
        check(is_utf8(paths[i].path) == paths[i].good, "UTF-8, row %zu", i);
        if (strchr(paths[i].path, ' ')) continue;
        copy("text", paths[i].path);
        if (!exists(paths[i].path)) continue; // a file system that knows better
        gives(0, "", BRIEF "--data %s --out odd.st", paths[i].path);
        load_model("odd.st");
        expect(is_utf8(model_header) && !strstr(model_header, paths[i].path));
        gives(1, "give --data FILE", "eval --model odd.st");
        gives(0, "full_loss", "eval --model odd.st --data %s", paths[i].path);
    }
}

// A new run keeps the files that it finds, whatever they are, and says so in a line each; what goes
// on in its own file does not; and no name that it picks is one that is taken.
static void test_kept_files(void) {
    #define ONCE_MORE "train --preset paper " SHAPE "--sample-every 0 --tokens 9 --log old/l "
    mkdir("old", 0777), copy("text", "old/a.txt"); // an essay, not a sample
    gives(0, "old/a.txt is there already; it is kept as old/a.txt.old\n",
          ONCE_MORE "--data text --steps 2 --out old/a");
    expect(same("old/a.txt.old", "text") && !exists("old/a.old"));
    copy("old/a", "a.kept"), copy("old/l", "l.kept"), copy("old/a.txt", "sample.kept");
    copy("text", "old/a.old"); // the user's
    for (int i = 2; i < 5; i++) {
        char name[64], said[256];
        snprintf(name, sizeof name, "old/a.old%d", i);
        snprintf(said, sizeof said, "old/a is there already; it is kept as %s\n", name);
        copy("old/a", "a.before");
        gives(0, said, ONCE_MORE "--lr 0.%d --data text --steps 2 --out old/a", i);
        expect(same(name, "a.before") && same("old/a.old", "text"));
    }
    expect(same("old/a.old2", "a.kept") && same("old/l.old", "l.kept"));
    expect(same("old/a.txt.old2", "sample.kept"));
    copy("text", "old/b"), copy("text", "old/a.txt"); // no checkpoint at all
    gives(0, "old/b is there already", ONCE_MORE "--data text --steps 4 --stop 2 --out old/b");
    expect(same("old/b.old", "text"));
    gives(0, "", "train --resume old/b --log old/l"); // what goes on is no other run
    expect(!strstr(errors, "kept"));
    gives(0, "kept as old/a.old5", "train --resume old/b --log old/l --out old/a");
    // a log of another run, or of this one when it went further
    gives(0, "", ONCE_MORE "--data text --steps 4 --stop 1 --eval-every 1 --out old/c");
    copy("old/c", "old/d");
    gives(0, "", "train --resume old/c --log old/l"), expect(!strstr(errors, "old/l is"));
    copy("old/l", "l.kept");
    gives(0, "old/l is there already; it is kept as ", "train --resume old/d --log old/l");
    char kept[64] = "";
    const char *at = strstr(errors, "old/l is there already; it is kept as ");
    expect(at && sscanf(at, "old/l is there already; it is kept as %63s", kept) == 1);
    expect(same(kept, "l.kept") && same("old/d", "old/c"));
}

// Messages and small results.
static void test_small(const char *here) {
    enum { TOKENS = 600 };
    int32_t header[256] = {20240520, 1, TOKENS};
    char shard[sizeof header + 2 * TOKENS];
    for (int i = 0; i < TOKENS; i++) {
        uint16_t token = (uint16_t)(i * i % 5000);
        memcpy(shard + sizeof header + 2 * (size_t)i, &token, 2);
    }
    memcpy(shard, header, sizeof header), put("wide", shard, sizeof shard);
    gives(0, "vocabulary 4992", BRIEF "--data wide --out w.st");
    gives(0, "predictions are left out", "certify --model w.st --data wide");
    if (searcher)
        gives(0, "predictions are left out", "search --model w.st --data wide --search-steps 1");
    gives(0, "", "certify --model w.st"), expect(!strstr(output, "left out"));
    gives(2, "from 1 to 1000000000, got", "train --steps 99999999999");
    gives(2, "from 0 to 2147483647, got", "train --seed 99999999999");
    // a function that is zero: the output head never moves
    gives(0, "certificate\t0\n", BRIEF "--data text --share-head 0 --out zero.st");
    says("paper_bound\t0\n"), expect(!strstr(errors, "nan") && !strstr(output, "nan"));
    gives(0, "certificate\t0\n", "certify --data text --model zero.st");
    expect(!strstr(output, "nan"));
    if (searcher) gives(0, "lower_bound\t0\n", "search --data text --model zero.st");
    expect(!strstr(output, "nan"));
    // what one is to type stands in quotes
    static const char *const places[] = {"a b/c.st", "it's.st", "plain-1.st"};
    for (size_t i = 0; i < LENGTH(places); i++) {
        char line[512], said[256];
        snprintf(line, sizeof line, "train " NET "--steps 4 --stop 2 --out \"%s\" --log \"%s.l\"",
                 places[i], places[i]);
        expect(in_shell("", line) == 0);
        snprintf(said, sizeof said, "--resume \"%s\" --log ", places[i]), says(said);
        char *hint = strstr(errors, "train --resume");
        snprintf(line, sizeof line, "%s", hint ? hint : "none");
        expect(in_shell("", line) == 0); // and that is what it takes
    }
    // a source folder that cannot be written: even root cannot make a folder of a file
    if (!copied(here, "Makefile", "!make --version")) return;
    mkdir("source", 0777), copy("Makefile", "source/Makefile"), put("source/build", "", 0);
    unsetenv("MAKEFLAGS");
    expect(execute("!make -C source") == 2), says("source/build: is the source folder read-only?");
    remove("source/build"), chmod("source", 0555);
    if (access("source", W_OK) != 0) expect(execute("!make -C source") == 2), says("read-only?");
    chmod("source", 0777);
}

#ifdef LIPGPT_DOUBLE
// read_golden: the file's numbers of everything in d.
static Dump read_golden(const char *path, const Dump *d) {
    Dump read = {0};
    File f = open_tensors(path);
    size_t size = f.data;
    for (int i = 0; i < d->count; i++) {
        Array a = d->arrays[i];
        locate(&f, &a);
        memcpy(add(&read, a.rows, a.cols, "%s", a.name), f.bytes + f.data + a.begin,
               a.end - a.begin);
        size += a.end - a.begin;
    }
    expect(size == f.size && f.size <= 200000); // nothing else is in it
    free(f.header), free(f.bytes);
    return read;
}

// restore_golden: weights and momenta before the step become the file's.
static void restore_golden(const Dump *read, Model *m) {
    int count;
    Array *arrays = arrays_of(m, &count);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < read->count; j++)
            if (!strcmp(arrays[i].name, read->arrays[j].name))
                memcpy(arrays[i].values, read->arrays[j].values,
                       (size_t)arrays[i].rows * (size_t)arrays[i].cols * sizeof(float));
    free(arrays);
}

// compare_golden: the largest difference of any matrix, relative to its largest number.
static double compare_golden(const Dump *d, const Dump *read) {
    double worst = 0;
    for (int i = 0; i < d->count; i++) {
        const float *x = d->arrays[i].values, *y = read->arrays[i].values;
        double error = 0, size = 0;
        for (int j = 0; j < d->arrays[i].rows * d->arrays[i].cols; j++)
            error = worse(error, fabs(x[j] - y[j])), size = max(size, fabs(y[j]));
        check(size > 0, "%s is zero", d->arrays[i].name);
        if (verbose) printf("    %-56s %.2g\n", d->arrays[i].name, error / size);
        worst = worse(worst, error / size);
    }
    return worst;
}

// The golden files cannot go stale: a step from their weights gives all of their numbers, and the
// run from the seed leads there. (Newton-Schulz amplifies rounding, in each of six steps.)
static void test_golden(void) {
    for (int i = 0; i < GOLDEN_FILES; i++) {
        Golden run = golden_start(i), step = golden_start(i);
        Dump free_run = golden_dump(&run), read = read_golden(golden_paths[i], &free_run);
        restore_golden(&read, step.m);
        Dump one_step = golden_dump(&step);
        at_most(compare_golden(&one_step, &read), 1e-12, golden_paths[i]); // 1e-13 without FMA
        at_most(compare_golden(&free_run, &read), 1e-10, "the run that leads there"); // 1.2e-12
        dump_free(&free_run), dump_free(&one_step), dump_free(&read);
        golden_free(&run), golden_free(&step);
    }
}
#else
static void test_golden(void) {} // they are of doubles
#endif

#include "dev/test_mlp.c"

static void test_programs(const char *const *given) {
    char here[1024] = "", directory[] = "build/cli-XXXXXX", old[16] = "";
    char paths[2][2200] = {"", ""};
    const char *threads = getenv("OMP_NUM_THREADS");
    bool ready = getcwd(here, sizeof here) && mkdtemp(directory) && chdir(directory) == 0;
    if (threads) snprintf(old, sizeof old, "%s", threads);
    for (int i = 0; i < 2 && given[i]; i++) {
        snprintf(paths[i], sizeof *paths, "%s/%s", *given[i] == '/' ? "" : here, given[i]);
        ready = ready && access(paths[i], X_OK) == 0;
        check(ready, "no directory build, or no program %s", paths[i]);
    }
    if (!ready) return;
    binary = paths[0], searcher = *paths[1] ? paths[1] : NULL;
    if (!searcher) printf("search is not tested: its path is the second argument\n");
    setenv("OMP_NUM_THREADS", "1", 1);
    signal(SIGINT, SIG_DFL), signal(SIGHUP, SIG_DFL); // which nohup and & ignore
    write_texts();
    test_data(), test_shards(), test_arguments(), test_defaults(), test_outputs();
    test_saved_bounds(), test_search(), test_sample(), test_resume(), test_options();
    test_budgets(), test_divergence(), test_fast_math(), test_places();
    test_rewrites();
    test_own_files(), test_two_runs(), test_signals(), test_random_stops(), test_descriptors();
    test_reports(), test_old_checkpoint(here), test_foreign(), test_odd_paths();
    test_kept_files(), test_small(here), test_mlp_program();
    gives(0, "small.st", "train --data two --preset paper --width 2 --heads 1 --blocks 1 "
          "--context 2 --batch 2 --mlp-ratio 1 --tokens 5 --steps 2 --out small.st");
    load_model("small.st");
    test_truncated(), test_lies(), test_fuzz(), test_numbers();
    free(model), free(model_header);
    if (*old) setenv("OMP_NUM_THREADS", old, 1);
    else unsetenv("OMP_NUM_THREADS");
    snprintf(here, sizeof here, "!rm -r ../%s", directory + strlen("build/"));
    expect(execute(here) == 0);
}

// write_seeds: what dev/fuzz.c starts from, in DIRECTORY/checkpoint, DIRECTORY/data and
// DIRECTORY/arguments, which are there: small inputs of every kind.
static void write_seeds(const char *directory) {
    static const char *const lines[] = {
        "", "--steps 3 --lr=0.5 --data text", "--preset paper --cap 1.5 --out a/b",
        "--model m --prompt to --tokens 5 --temperature 0 --seed 3", "--lipschitz 2 --blocks 2 x",
        "--optimizer adamw --constraint hammer --width 16 --heads 2", "--windows 3 --model a --x",
        "--activation maxmin --bias 1 --position-bias 0 --per-head 1"};
    static const char *const texts[] = {"to be or not to be that is the question\n",
                                        "h\xc3\xa9l\xc3\xa9ne na\xc3\xafve \xe2\x82\xac",
                                        "<!doctype html>", "\x93NUMPY", "PK\3\4"};
    char path[1024];
    int32_t shard[256 + 10] = {20240520, 1, 20};
    for (int i = 0; i < 10; i++) shard[256 + i] = i << 16 | (i + 1);
    snprintf(path, sizeof path, "%s/data/shard", directory);
    put(path, shard, sizeof shard);
    for (size_t i = 0; i < LENGTH(texts); i++) {
        snprintf(path, sizeof path, "%s/data/%zu", directory, i);
        put(path, texts[i], strlen(texts[i]));
    }
    for (size_t i = 0; i < LENGTH(lines); i++) {
        char words[256];
        snprintf(words, sizeof words, "%s", lines[i]);
        for (char *p = words; *p; p++) *p = *p == ' ' ? '\n' : *p;
        snprintf(path, sizeof path, "%s/arguments/%zu", directory, i);
        put(path, words, strlen(words));
    }
    for (int i = 0; i < 4; i++) {
        Config c = preset_config(i % 2 ? PAPER : TIGHT);
        c.width = 2 + i, c.width -= i % 2, c.heads = c.blocks = c.batch = c.mlp_ratio = 1;
        c.context = c.vocabulary = 2, c.lipschitz = 0, c.optimizer = i == 3 ? ADAMW : MUON;
        Lab lab = random_lab(&c, (uint64_t)i);
        Data data = {.vocabulary = 2, .is_text = i < 2, .symbols = "ab"};
        Progress progress = {i, {(uint64_t)i}, 7, 0.5};
        certify(lab.m, &lab.certificate);
        snprintf(path, sizeof path, "%s/checkpoint/%d", directory, i);
        checkpoint_save(path, lab.m, &data, &progress, &lab.certificate);
        give_back();
    }
}

int main(int argc, char **argv) {
    #define TEST(name) {#name, test_##name}
    static const struct { const char *name; void (*run)(void); } tests[] = {
        TEST(layer_gradients), TEST(model_gradients), TEST(margin), TEST(head_by_parts), TEST(rng),
        TEST(matmul), TEST(exp), TEST(spectral_norm), TEST(orthogonalize), TEST(gelu), TEST(maxmin),
        TEST(softmax), TEST(draw), TEST(attention), TEST(causality), TEST(presets), TEST(init),
        TEST(optimizer_step),
        TEST(caps_of_kinds), TEST(share_growth), TEST(adamw), TEST(overfit), TEST(coupling),
        TEST(soft_cap), TEST(cap_after_step),
        TEST(constraints), TEST(constraints_at_the_ends), TEST(certificate_from_below),
        TEST(attention_is_tight), TEST(layers_are_tight), TEST(norms), TEST(paper_bound),
        TEST(sound_bound), TEST(compose_at_the_ends), TEST(budget), TEST(margin_of_ties),
        TEST(certified_share),
        TEST(certified_predictions), TEST(show_bound), TEST(windows), TEST(part_of_split),
        TEST(golden),
        TEST(mlp_gradients), TEST(mlp_batch), TEST(mlp_certificate),
    };
    verbose = getenv("VERBOSE") != NULL;
    if (argc > 2 && !strcmp(argv[1], "--seeds")) {
        write_seeds(argv[2]);
        return 0;
    }
    Config c = tiny(PAPER);
    for (size_t i = 0; i < LENGTH(tests); i++) {
        double begin = seconds();
        the = lab_create(&c);
        tests[i].run(), give_back();
        if (verbose) printf("%s: %.2f s\n", tests[i].name, seconds() - begin);
    }
    if (argc > 1 && !DOUBLE) test_programs((const char *const *)argv + 1);
    printf("%s: %d passed, %d failed\n", DOUBLE ? "double" : "float", passed, failed);
    return failed != 0;
}
