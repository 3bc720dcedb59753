// lipgpt: a Lipschitz-constrained transformer in one C file: train, evaluate, certify, sample.
//
// A function f is K-Lipschitz if |f(x) - f(y)| <= K |x - y|. This program trains a small language
// model whose weights are held inside spectral-norm balls after *every* optimizer step, and
// computes from them a number K that provably bounds how far a change of the embeddings can move
// the logits. The method is that of "Training Transformers with Enforced Lipschitz Constants"
// (arXiv 2507.13338, "the paper" below); where we differ, the line says so with the word "ours".
//
//   make train                                       fetch Shakespeare, train, certify, sample
//   ./lipgpt certify --model out/lipgpt.safetensors  the certificate, layer by layer
//   ./lipgpt sample --model out/lipgpt.safetensors   write some Shakespeare
//
// What it refuses to do: GPUs, mixed precision, dropout, layer norm, packages beyond libc, libm.
// It does not recover from bad input: it says what was wrong and what to do, and stops (see fail).
//
// How to read it: top to bottom. 1 tools, 2 matrices, 3 layers (each ends with its Lipschitz
// constant), 4 the model, 5 Muon, 6 caps, 7 the certificate, 8 text, 9 checkpoints, 10 the four
// commands, 11 the command line. The idea is in 3 to 7; the rest is plumbing.
//
// Symbols, in every shape comment:          Units:
//   T  tokens of one sequence                 x in R^n: RMS norm, |x|_2 / sqrt(n)
//   d  width of the residual stream           a sequence (T, d): the largest RMS norm of its tokens
//   H  heads, dh = d / H their width          a weight (O, I): RMS->RMS operator norm,
//   F  hidden units of the MLP                  |W| = sigma_max(W) sqrt(I / O)
//   L  blocks                                 logits and loss: nats
//   V  size of the vocabulary                 caps, updates, learning rates: RMS->RMS norm
//
// Ours, not the paper's: the sound bound (section 7; the paper's is printed beside it), Gram
// iteration instead of power iteration, lanes, and the options of the preset "tight": residual
// weight, attention factor, |x| and MaxMin, position bias, MLP and logit biases, per-head caps.

#define _POSIX_C_SOURCE 200809L
#define _DARWIN_C_SOURCE // macOS: for _SC_PHYS_PAGES
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_max_threads(void) { return 1; }
#endif

// ---------------------------------------------------------------------------------------------
// 1. Tools: one failure policy, memory, time, random numbers.

// fresh_line: on a terminal, what wipes out the progress line before something else is printed.
static const char *fresh_line(void) { return isatty(2) ? "\r\033[K" : ""; }

// fail: the only way this program fails: what happened, with the number or name that was wrong,
// then what to do; exit status 2 for the command line, 1 for everything else.
__attribute__((format(printf, 3, 4)))
_Noreturn static void fail(int status, const char *hint, const char *format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (char *p = text; *p; p++) // names in a hostile file send nothing to the terminal
        if (iscntrl((unsigned char)*p)) *p = '?';
    fflush(stdout);
    fprintf(stderr, "%slipgpt: %s; %s\n", fresh_line(), text, hint);
    exit(status);
}
#define die(...) fail(1, __VA_ARGS__)
#define die_usage(...) fail(2, __VA_ARGS__)

// Two requests to the compiler: constant arguments shape the code; and no loop is left.
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// allocate: count zeroed elements, or death.
static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory)
        die("choose a smaller model, context, vocabulary or number of lanes",
            "out of memory: %.3g MB were wanted", (double)count * (double)size / 1e6);
    return memory;
}

static float *floats(size_t count) { return allocate(count, sizeof(float)); }
static double *doubles(size_t count) { return allocate(count, sizeof(double)); }
static double square(double x) { return x * x; }
static double larger(double a, double b) { return a > b ? a : b; }
static double smaller(double a, double b) { return a < b ? a : b; }

static int least(int a, int b) { return a < b ? a : b; }

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Random numbers: splitmix64 (Steele, Lea, Flood 2014). The state is one integer, so a checkpoint
// carries it and a resumed run draws the same windows.
typedef struct { uint64_t state; } Rng;

static uint64_t rng_next(Rng *rng) {
    uint64_t z = rng->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double rng_uniform(Rng *rng) { return (double)(rng_next(rng) >> 11) * 0x1p-53; } // [0, 1)
static size_t rng_below(Rng *rng, size_t n) { return (size_t)(rng_next(rng) % n); }
static double rng_normal(Rng *rng) { // Box-Muller
    double radius = sqrt(-2 * log(1 - rng_uniform(rng)));
    return radius * cos(6.283185307179586 * rng_uniform(rng));
}

// ---------------------------------------------------------------------------------------------
// 2. Matrices: one product, C = scale A B (plus C, if add), does nearly all the work of this file.
// A multiply-add needs two numbers, so speed is reuse. Register tile: MR x NR sums of C stay in
// registers while the micro-kernel walks along k; a step loads NR numbers of B, broadcasts MR of A
// and makes MR * NR multiply-adds of them. Packed panel: MR rows of A, or NR columns of B, copied
// so that a step finds its numbers side by side: strides and transposes become alike, and zeros
// fill what the matrix's edge cuts off. (Of a transposed A, a cache line's worth of rows at once,
// so that no line is fetched twice.) Cache block: a panel of A, KC deep (16 KB at most), stays in
// the L1 cache while the panels of a KC x NC block of B (0.5 MB) stream past it from the L2 cache.
typedef struct { float *p; int rows, cols; size_t row, col; } Mat; // (i, j) is at p[i*row + j*col]

// All of C; only C(i, j) with j <= i; A(i, k) counts as 0 for k > i; or for k < i.
typedef enum { FULL, LOWER_OUT, LOWER_LEFT, UPPER_LEFT } Triangle;

#if defined __AVX512F__ // MR * VECS sums, VECS of B and one of A must fit into 32 registers,
enum { VEC_BYTES = 64, MR = 8, VECS = 3 };
#elif defined __AVX2__ // or into 16; 12 sums are enough to hide a latency of 4 cycles
enum { VEC_BYTES = 32, MR = 4, VECS = 3 };
#elif defined __ARM_NEON
enum { VEC_BYTES = 16, MR = 8, VECS = 3 };
#else
enum { VEC_BYTES = 16, MR = 4, VECS = 2 };
#endif
enum { WIDTH = VEC_BYTES / sizeof(float), NR = VECS * WIDTH, KC = 256, NC = 512 / NR * NR };
enum { LINE = 16 }; // numbers of a cache line
typedef float Vec __attribute__((vector_size(VEC_BYTES), aligned(4), may_alias));
typedef float Four __attribute__((vector_size(4 * sizeof(float)), aligned(4), may_alias));
INLINE Mat mat(float *p, int rows, int cols) { return (Mat){p, rows, cols, (size_t)cols, 1}; }
INLINE Mat transposed(Mat a) { return (Mat){a.p, a.cols, a.rows, a.col, a.row}; }
INLINE float *at(Mat a, int i, int j) { return a.p + (size_t)i * a.row + (size_t)j * a.col; }

// pack: to[k * width + i] = a(i, k), zero for i >= a.rows: a panel.
INLINE void pack(float *to, int width, Mat a) {
    if (a.rows < width) memset(to, 0, (size_t)(width * a.cols) * sizeof(float));
    for (int k = 0; k < a.cols && a.row == 1; k++)
        if (a.rows == width) // a size known when compiling becomes moves
            memcpy(to + k * width, at(a, 0, k), (size_t)width * sizeof(float));
        else memcpy(to + k * width, at(a, 0, k), (size_t)a.rows * sizeof(float));
    for (int i = 0, k = 0; i < a.rows && a.row != 1; i += 4, k = 0) {
#if defined __clang__ || __GNUC__ >= 12 // 4 x 4 transposed: zip rows 0, 2 and rows 1, 3, twice
#define ZIP(x, q) (q % 2 ? __builtin_shufflevector(x[q / 2], x[q / 2 + 2], 2, 6, 3, 7) \
                         : __builtin_shufflevector(x[q / 2], x[q / 2 + 2], 0, 4, 1, 5))
        for (Four r[4], z[4]; k + 4 <= a.cols && i + 4 <= a.rows && a.col == 1; k += 4) {
            UNROLL for (int q = 0; q < 4; q++) r[q] = *(const Four *)at(a, i + q, k);
            UNROLL for (int q = 0; q < 4; q++) z[q] = ZIP(r, q);
            UNROLL for (int q = 0; q < 4; q++) *(Four *)(to + (k + q) * width + i) = ZIP(z, q);
        }
#endif
        for (; k < a.cols; k++)
            for (int l = i; l < least(i + 4, a.rows); l++) to[k * width + l] = *at(a, l, k);
    }
}

// micro_kernel: one tile of C (mr x vecs vectors) from two panels, walking `depth` steps.
INLINE void micro_kernel(int mr, int vecs, Mat c, const float *a, int a_step, const float *b,
                         int b_step, int depth, float scale, int add) {
    float edge[MR * NR]; // where a tile goes that the edge of C cuts
    Vec sum[MR][VECS] = {{{0}}};
    for (int k = 0; k < depth; k++, a += a_step, b += b_step)
        UNROLL for (int i = 0; i < mr; i++)
            UNROLL for (int v = 0; v < vecs; v++) sum[i][v] += a[i] * ((const Vec *)b)[v];
    int whole = c.rows >= mr && c.cols >= vecs * WIDTH && c.col == 1;
    UNROLL for (int i = 0; i < mr; i++)
        UNROLL for (int v = 0; v < vecs; v++) {
            Vec *to = (Vec *)(whole ? at(c, i, 0) : edge + i * NR) + v;
            *to = whole && add ? *to + scale * sum[i][v] : scale * sum[i][v];
        }
    for (int i = 0; i < least(c.rows, mr) && !whole; i++)
        for (int j = 0; j < least(c.cols, vecs * WIDTH); j++)
            *at(c, i, j) = edge[i * NR + j] + (add ? *at(c, i, j) : 0);
}

static void matmul(Mat c, Mat a, Mat b, float scale, int add, Triangle triangle) { // c.col is 1
    static _Thread_local _Alignas(64) float panel[LINE * KC + WIDTH], block[NC * KC];
    int group = a.row == 1 ? LINE : MR, from = 0; // rows of A in a panel, and its first k
    for (int j0 = 0; j0 < c.cols; j0 += NC) for (int k0 = 0; k0 < a.cols; k0 += KC) {
        int nc = least(NC, c.cols - j0), kc = least(KC, a.cols - k0);
        for (int j = 0; j < nc; j += NR)
            pack(block + j * kc, NR, (Mat){at(b, k0, j0 + j), least(NR, nc - j), kc, b.col, b.row});
        for (int i = triangle == LOWER_OUT ? j0 / LINE * LINE : 0; i < c.rows; i += MR) {
            int rows = least(MR, c.rows - i), lo = triangle == UPPER_LEFT && i > k0 ? i : k0;
            int hi = least(k0 + kc, triangle == LOWER_LEFT ? i + rows : a.cols);
            int width = triangle == LOWER_OUT ? least(nc, i + rows - j0) : nc;
            int end = least(k0 + kc, triangle == LOWER_LEFT ? i + group : a.cols);
            if (i % group == 0 && lo < end) { // a width known when compiling packs faster
                Mat next = {at(a, i, from = lo), least(group, c.rows - i), end - lo, a.row, a.col};
                if (group == LINE) pack(panel, LINE, next);
                else pack(panel, MR, next);
            }
            if (lo >= hi || width <= 0) continue;
            float *ap = panel + (lo - from) * group + i % group;
            for (int p = 0; p < rows && triangle >= LOWER_LEFT && lo <= i && i < hi; p++)
                for (int q = 0; q < p; q++) // all k of the diagonal are here, for LINE divides KC
                    ap[(i - lo) * group +
                       (triangle == LOWER_LEFT ? p * group + q : q * group + p)] = 0;
            int more = add || lo > (triangle == UPPER_LEFT ? i : 0); // the first of the sum stores
            for (int j = 0; j < width; j += NR) {
                int cols = least(NR, width - j), vecs = cols / WIDTH, thin = cols % WIDTH;
                const float *bp = block + j * kc + (lo - k0) * NR;
                Mat t = {at(c, i, j0 + j), rows, nc - j, c.row, 1};
                if (VEC_BYTES == 64 && thin && thin <= 4) // a few columns: a transposed tile
                    micro_kernel(4, 1, (Mat){t.p + cols - thin, thin, rows, 1, c.row},
                                 bp + cols - thin, NR, ap, group, hi - lo, scale, more);
                else vecs += thin > 0;
#define TRY(h, w) if ((rows > 4 ? MR : 4) == h && vecs == w) \
                    micro_kernel(h, w, t, ap, group, bp, NR, hi - lo, scale, more); else
                TRY(MR, VECS) TRY(MR, 2) TRY(MR, 1) TRY(4, VECS) TRY(4, 2) TRY(4, 1) {}
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// 3. Layers, forward then backward. Each is a serial function over ONE sequence; no layer knows of
// batches or threads. A backward has the arguments of its forward, with d for gradients, and reads
// the forward pass backwards, line by line. Gradients of weights and of the residual stream are
// added (+=); scratch gradients, which have a single source, are set. Every comment ends with the
// layer's Lipschitz constant and what it does to the norm: section 7 only composes those.

// The constants of the method stand here once, for forward, backward and certificate alike. The
// tanh form of GELU has slope up to 1.128993069; after the paper's division by 1.1289 a slope
// slightly above 1 is left, which the certificate counts.
#define GELU_DIVISOR 1.1289
#define GELU_SLOPE 1.1289931
typedef enum { GELU, ABS, MAXMIN } Activation;

// rms: root mean square of n numbers, in double: the unit of every activation.
static double rms(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += square((double)x[i]);
    return sqrt(sum / (double)n);
}

// fast_exp: e^x with relative error below 1e-7 on [-87, 87], clamped outside; NaN stays NaN. Only
// adds and multiplies, so that compilers turn a loop of it into vector code: x = n ln 2 + r, a
// polynomial in r, and n added to the exponent bits. The clamp compares |x| as an integer: of two
// float comparisons gcc makes branches. (The tests' double build takes libm's.)
static inline float fast_exp(float x) {
#ifdef float
    return exp(x);
#else
    const float shifter = 12582912; // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    const int32_t most = 0x42ae0000, infinity = 0x7f800000; // the bits of 87 and of infinity
    int32_t sign, size;
    memcpy(&sign, &x, sizeof sign);
    size = sign & INT32_MAX, sign &= INT32_MIN;
    size = sign | (size > most && size <= infinity ? most : size);
    memcpy(&x, &size, sizeof x);
    float shifted = x * 1.44269504f + shifter, n = shifted - shifter;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts
    float p = 1 / 5040.0f;
    p = p * r + 1 / 720.0f, p = p * r + 1 / 120.0f, p = p * r + 1 / 24.0f, p = p * r + 1 / 6.0f;
    p = p * r + 0.5f, p = p * r + 1, p = p * r + 1;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
#endif
}

// largest_of: the largest of n numbers, or with sign -1 of their negatives. Sixteen partial
// results, because compilers may not reorder a single one. (Not inline: around it, clang leaves
// the loop of softmax scalar.)
static __attribute__((noinline)) float largest_of(const float *x, size_t n, float sign) {
    float part[16], largest = sign * x[0];
    for (int l = 0; l < 16; l++) part[l] = largest;
    for (size_t i = 0; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++)
            part[l] = sign * x[i + l] > part[l] ? sign * x[i + l] : part[l];
    for (size_t i = n / 16 * 16; i < n; i++)
        largest = sign * x[i] > largest ? sign * x[i] : largest;
    for (int l = 0; l < 16; l++) largest = part[l] > largest ? part[l] : largest;
    return largest;
}

// softmax of n numbers in place; returns log sum exp, so that -log p = returned - logit.
static double softmax(float *x, int n) {
    float largest = largest_of(x, (size_t)n, 1), sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) {
        x[i] = fast_exp(x[i] - largest);
        sum += x[i];
    }
    float inverse = 1 / sum;
    for (int i = 0; i < n; i++) x[i] *= inverse;
    return (double)largest + log((double)sum);
}

// embedding: x_t = E[token_t].     x (T, d), E (V, d) with rows of RMS norm <= R0, so |x| <= R0.
static void embedding_forward(float *x, const float *E, const uint16_t *tokens, int T, int d) {
    for (int t = 0; t < T; t++)
        memcpy(x + (size_t)t * d, E + (size_t)tokens[t] * d, (size_t)d * sizeof(float));
}

static void embedding_backward(float *dE, const float *dx, const uint16_t *tokens, int T, int d) {
    for (int t = 0; t < T; t++)
        for (int i = 0; i < d; i++) dE[(size_t)tokens[t] * d + i] += dx[(size_t)t * d + i];
}

// linear: y = x W^T + b at every token.     x (T, I), W (O, I), b (O) or NULL, y (T, O)
// |W|-Lipschitz in RMS units, whatever b is; |y| <= |W| |x| + |b|.
static void linear_forward(float *y, float *x, float *W, const float *b, int T, int I, int O) {
    matmul(mat(y, T, O), mat(x, T, I), transposed(mat(W, O, I)), 1, 0, FULL);
    for (int t = 0; b && t < T; t++)
        for (int o = 0; o < O; o++) y[(size_t)t * O + o] += b[o];
}

// dx += dy W;  dW += dy^T x;  db += the sum of dy over tokens.  dW, db may be NULL: not asked for.
static void linear_backward(float *dx, float *dW, float *db, float *dy, float *x, float *W,
                            int T, int I, int O) {
    matmul(mat(dx, T, I), mat(dy, T, O), mat(W, O, I), 1, 1, FULL);
    if (dW) matmul(mat(dW, O, I), transposed(mat(dy, T, O)), mat(x, T, I), 1, 1, FULL);
    for (int t = 0; db && t < T; t++)
        for (int o = 0; o < O; o++) db[o] += dy[(size_t)t * O + o];
}

// mix: y = keep x + share (h W^T): a block's last linear layer, folded into the residual stream.
//   x, y (T, d); h (T, I); W (d, I). The paper's stream is convex: keep = 1 - alpha, share = alpha
//   (times 1/3 for attention, 1 for the MLP). Lipschitz: keep + share |W| (constant of h from x).
static void mix_forward(float *y, const float *x, float *h, float *W, double keep, double share,
                        int T, int I, int d) {
    for (size_t i = 0; i < (size_t)T * d; i++) y[i] = (float)keep * x[i];
    matmul(mat(y, T, d), mat(h, T, I), transposed(mat(W, d, I)), (float)share, 1, FULL);
}

// dh = share dy W;  dW += share dy^T h;  then dx = keep dy, in place: dx holds dy when called.
static void mix_backward(float *dx, float *dh, float *dW, float *h, float *W, double keep,
                         double share, int T, int I, int d) {
    matmul(mat(dh, T, I), mat(dx, T, d), mat(W, d, I), (float)share, 0, FULL);
    if (dW) matmul(mat(dW, d, I), transposed(mat(dx, T, d)), mat(h, T, I), (float)share, 1, FULL);
    for (size_t i = 0; i < (size_t)T * d; i++) dx[i] *= (float)keep;
}

// rope: rotate q and k by an angle that grows with position, so that q_i . k_j knows i - j.
//   qkv (T, 3d) in place; table (T, dh/2, 2) of cos and sin of t base^(-i / (dh/2)), base 10000.
//   As in the paper's code the two *halves* of a head are paired, not even with odd entries.
// A rotation within a head: no norm and no distance changes. Backward is the inverse rotation.
static void rope(float *qkv, const float *table, int direction, int T, int d, int H) {
    int half = d / H / 2;
    for (int t = 0; t < T; t++)
        for (int h = 0; h < 2 * H; h++) { // the heads of q, then those of k
            float *low = qkv + (size_t)t * 3 * d + (size_t)h * 2 * half, *high = low + half;
            const float *angle = table + (size_t)t * 2 * half;
            for (int i = 0; i < half; i++) {
                float c = angle[2 * i], s = (float)direction * angle[2 * i + 1];
                float first = low[i], second = high[i];
                low[i] = c * first - s * second;
                high[i] = c * second + s * first;
            }
        }
}

// attention: y = concat_h(A_h v_h),  A_h = causal softmax(scale q_h k_h^T + b_h).
//   qkv (T, 3d): q, k, v side by side, each H heads of dh; y (T, d)
//   A (H, T, T), of which nothing above the diagonals is computed
//   b (H, context) or NULL, ours: b_h[i - j] is added when token i looks at j
//   scale = s / dh, the paper's 1/dh and not 1/sqrt(dh): then |score| <= s |q||k| in RMS norms
// Per head: scores are at most beta = s |W_q||W_k| a^2 for |x| <= a, and the head is
// |W_v| (1 + 2 beta)-Lipschitz; b costs nothing, A stays a convex combination. Norm: |A v| <= |v|.
static Mat head_of(float *x, int part, int parts, int h, int T, int d, int H) {
    return (Mat){x + (size_t)part * d + (size_t)h * (d / H), T, d / H, (size_t)parts * d, 1};
}

static void attention_forward(float *y, float *A, float *qkv, const float *b, double scale,
                              int context, int T, int d, int H) {
    for (int h = 0; h < H; h++) {
        Mat q = head_of(qkv, 0, 3, h, T, d, H), k = head_of(qkv, 1, 3, h, T, d, H);
        Mat v = head_of(qkv, 2, 3, h, T, d, H), a = mat(A + (size_t)h * T * T, T, T);
        matmul(a, q, transposed(k), (float)scale, 0, LOWER_OUT);
        for (int i = 0; i < T; i++) {
            for (int j = 0; b && j <= i; j++) *at(a, i, j) += b[(size_t)h * context + (i - j)];
            softmax(at(a, i, 0), i + 1);
        }
        matmul(head_of(y, 0, 1, h, T, d, H), a, v, 1, 0, LOWER_LEFT);
    }
}

// dA = dy v^T;  dv = A^T dy;  ds_ij = A_ij (dA_ij - sum_j A_ij dA_ij);  db_(i-j) += ds_ij;
// dq = scale ds k;  dk = scale ds^T q.     dA (T, T) is scratch and becomes ds, dqkv is set.
static void attention_backward(float *dqkv, float *dA, float *db, float *dy, float *A, float *qkv,
                               double scale, int context, int T, int d, int H) {
    for (int h = 0; h < H; h++) {
        Mat q = head_of(qkv, 0, 3, h, T, d, H), k = head_of(qkv, 1, 3, h, T, d, H);
        Mat v = head_of(qkv, 2, 3, h, T, d, H), a = mat(A + (size_t)h * T * T, T, T);
        Mat out = head_of(dy, 0, 1, h, T, d, H), ds = mat(dA, T, T);
        matmul(ds, out, transposed(v), 1, 0, LOWER_OUT);
        matmul(head_of(dqkv, 2, 3, h, T, d, H), transposed(a), out, 1, 0, UPPER_LEFT);
        for (int i = 0; i < T; i++) {
            float *row = at(ds, i, 0), *p = at(a, i, 0), mean = 0;
            #pragma omp simd reduction(+ : mean)
            for (int j = 0; j <= i; j++) mean += p[j] * row[j];
            for (int j = 0; j <= i; j++) row[j] = p[j] * (row[j] - mean);
            for (int j = 0; db && j <= i; j++) db[(size_t)h * context + (i - j)] += row[j];
        }
        matmul(head_of(dqkv, 0, 3, h, T, d, H), ds, k, (float)scale, 0, LOWER_LEFT);
        matmul(head_of(dqkv, 1, 3, h, T, d, H), transposed(ds), q, (float)scale, 0, UPPER_LEFT);
    }
}

// activation: a = phi(z), z and a (T, F).
//   GELU    z sigmoid(2u) / 1.1289, u = sqrt(2/pi) (z + 0.044715 z^3), the tanh form: |phi(z)| <=
//           |z| / 1.1289 and slope <= GELU_SLOPE / 1.1289
//   ABS     |z|, ours: 1-Lipschitz and |phi(z)| = |z|, where GELU halves every small signal
//   MAXMIN  units i and i + F/2 become their max and their min, ours: the same two properties
static void activation_forward(float *a, const float *z, Activation phi, int T, int F) {
    size_t n = (size_t)T * F, half = (size_t)F / 2;
    for (size_t i = 0; phi == GELU && i < n; i++) {
        float x = z[i], u = 0.7978845608f * (x + 0.044715f * x * x * x);
        a[i] = x / ((1 + fast_exp(-2 * u)) * (float)GELU_DIVISOR);
    }
    for (size_t i = 0; phi == ABS && i < n; i++) a[i] = z[i] < 0 ? -z[i] : z[i];
    for (int t = 0; phi == MAXMIN && t < T; t++, a += F, z += F)
        for (size_t i = 0; i < half; i++) {
            float x = z[i], y = z[i + half];
            a[i] = x < y ? y : x;
            a[i + half] = x < y ? x : y;
        }
}

// dz = phi'(z) da, in place: da becomes dz.
static void activation_backward(float *da, const float *z, Activation phi, int T, int F) {
    size_t n = (size_t)T * F, half = (size_t)F / 2;
    for (size_t i = 0; phi == GELU && i < n; i++) {
        float x = z[i], u = 0.7978845608f * (x + 0.044715f * x * x * x);
        float du = 0.7978845608f * (1 + 3 * 0.044715f * x * x), s = 1 / (1 + fast_exp(-2 * u));
        da[i] *= (s + x * s * (1 - s) * 2 * du) * (float)(1 / GELU_DIVISOR);
    }
    for (size_t i = 0; phi == ABS && i < n; i++) da[i] = z[i] < 0 ? -da[i] : da[i];
    for (int t = 0; phi == MAXMIN && t < T; t++, da += F, z += F)
        for (size_t i = 0; i < half; i++) {
            float top = da[i], bottom = da[i + half];
            bool swapped = z[i] < z[i + half];
            da[i] = swapped ? bottom : top;
            da[i + half] = swapped ? top : bottom;
        }
}

// cross entropy: logits (T, V) become probabilities in place; returns the summed loss in nats and
// counts the positions whose largest logit is the target's.
static double cross_entropy_forward(float *logits, const uint16_t *targets, int *correct, int T,
                                    int V) {
    double loss = 0;
    for (int t = 0; t < T; t++) {
        float *row = logits + (size_t)t * V, target = row[targets[t]];
        int best = 0;
        for (int v = 1; v < V; v++) best = row[v] > row[best] ? v : best;
        *correct += best == targets[t];
        loss += softmax(row, V) - (double)target;
    }
    return loss;
}

// dlogits = (p - onehot) / n, in place: the gradient of the mean loss over n tokens.
static void cross_entropy_backward(float *p, const uint16_t *targets, double n, int T, int V) {
    for (int t = 0; t < T; t++) {
        float *row = p + (size_t)t * V;
        row[targets[t]] -= 1;
        for (int v = 0; v < V; v++) row[v] /= (float)n;
    }
}

// ---------------------------------------------------------------------------------------------
// 4. The model: its settings, one table of tensors, and one sequence forward and backward.
//
//   x = E[token]
//   x = keep x + share c Attention(x) W_o^T       ... for every block
//   x = keep x + share phi(x W_in^T + b_in) W_out^T
//   logits = x W_head^T + b_out                   no layer norm, no final norm
//
// The paper has keep = 1 - alpha, share = alpha = 1/(2L), c = 1/3, phi = GELU/1.1289, no biases.

enum { PATH_SIZE = 1024, FILE_SIZE = PATH_SIZE + 32 }; // of a path given, of one made from it

typedef struct { // every setting of the program; section 11 gives names, defaults and ranges
    char data[PATH_SIZE], out[PATH_SIZE], log[PATH_SIZE], resume[PATH_SIZE], model[PATH_SIZE];
    char prompt[PATH_SIZE], pair[PATH_SIZE];
    int width, heads, blocks, context, mlp_ratio, vocabulary;       // the network
    int activation, position_bias, bias, per_head, plain_residual;
    double residual, attention_factor, softmax_scale;
    int steps, batch, lanes, seed, optimizer, constraint;           // training
    double beta2, spectral_decay, lr, beta, mass, weight_decay, share_embed, share_head, share_bias;
    double cap, cap_qk, cap_v, cap_o, cap_in, cap_out, cap_head, cap_embed, cap_bias, lipschitz;
    int preset, eval_every, sample_every, stop, tokens, search_steps, windows; // the rest
    double temperature;
} Config;

typedef enum { MUON, ADAMW } Optimizer;
typedef enum { SOFT, HARD, NORMALIZE, STIEFEL, HAMMER, DECAY } Constraint;

// The tensors of a model, in the order in which they stand in memory. A tensor that the settings do
// not ask for has no rows.
typedef enum { EMBED, QUERY, KEY, VALUE, POSITION, OUTPUT, IN, IN_BIAS, OUT, HEAD, HEAD_BIAS,
               KINDS } Kind;
enum { PER_BLOCK = HEAD - QUERY };

typedef struct {
    char name[48];
    Kind kind;
    int block, rows, cols; // (fan_out, fan_in); one embedding or one bias vector per row
    int parts;             // parts > 1: each rows/parts slice is a matrix of its own (--per-head)
    double cap;            // largest RMS->RMS norm (rows: RMS norm), 0 = free
    double share;          // u_W: norm of an update per unit of learning rate
    size_t offset, size;   // where it stands in weights, momenta and gradients
} Tensor;

typedef struct {
    Config config;
    int count;
    Tensor *tensors;
    size_t size;               // of all tensors together
    float *weights, *momentum, *second; // second: only for AdamW, else NULL
    float *angles;             // rope's table, (context, dh/2, 2)
} Model;

static bool is_matrix(Kind kind) { // what the RMS->RMS norm is for; the others are rows
    return kind != EMBED && kind != POSITION && kind != IN_BIAS && kind != HEAD_BIAS;
}

static Tensor *tensor(const Model *m, Kind kind, int block) {
    int body = m->config.blocks * PER_BLOCK;
    return &m->tensors[kind == EMBED  ? 0
                       : kind >= HEAD ? 1 + body + (int)(kind - HEAD)
                                      : 1 + block * PER_BLOCK + (int)(kind - QUERY)];
}

// values: a tensor's numbers in the weights, in a momentum or in a gradient; NULL if it has none.
static float *values(const Model *m, float *base, Kind kind, int block) {
    Tensor *t = tensor(m, kind, block);
    return base && t->size ? base + t->offset : NULL;
}

static bool holds_caps(const Config *c) { return c->constraint <= STIEFEL; } // see constrain
static double keep_of(const Config *c) { return c->plain_residual ? 1 : 1 - c->residual; }
static double share_of(const Config *c) { return c->plain_residual ? 1 : c->residual; }

// model_plan: the one table of tensors. Shares are those of the modular norm with the blocks' mass
// M: c = M / (M + 2) for q, k, v, a third of it for o, in, out, and 1 / (M + 2) for embedding and
// head (paper: Muon in the modular norm); the factors --share-* are ours.
static void model_plan(Model *m) {
    const Config *c = &m->config;
    int d = c->width, F = d * c->mlp_ratio, V = c->vocabulary, slices = c->per_head ? c->heads : 1;
    double body = c->mass / (c->mass + 2), ends = 1 / (c->mass + 2);
    const struct { const char *name; int rows, cols, parts; double cap, share; } plan[KINDS] = {
        [EMBED]     = {"embedding.weight", V, d, 1, c->cap_embed, ends * c->share_embed},
        [QUERY]     = {"attention.query.weight", d, d, slices, c->cap_qk, body},
        [KEY]       = {"attention.key.weight", d, d, slices, c->cap_qk, body},
        [VALUE]     = {"attention.value.weight", d, d, slices, c->cap_v, body},
        [POSITION]  = {"attention.position_bias", c->position_bias ? c->heads : 0, c->context, 1, 0,
                       c->share_bias},
        [OUTPUT]    = {"attention.output.weight", d, d, 1, c->cap_o, body / 3},
        [IN]        = {"mlp.in.weight", F, d, 1, c->cap_in, body / 3},
        [IN_BIAS]   = {"mlp.in.bias", c->bias, F, 1, c->cap_bias, c->share_bias},
        [OUT]       = {"mlp.out.weight", d, F, 1, c->cap_out, body / 3},
        [HEAD]      = {"head.weight", V, d, 1, c->cap_head, ends * c->share_head},
        [HEAD_BIAS] = {"head.bias", c->bias, V, 1, 0, c->share_bias},
    };
    m->size = 0, m->count = 3 + c->blocks * PER_BLOCK;
    m->tensors = allocate((size_t)m->count, sizeof(Tensor));
    for (int i = 0; i < m->count; i++) {
        Tensor *t = &m->tensors[i];
        int inner = i - 1, tail = inner - c->blocks * PER_BLOCK;
        bool in_block = i > 0 && tail < 0;
        t->kind = i == 0 ? EMBED : in_block ? QUERY + (Kind)(inner % PER_BLOCK) : HEAD + (Kind)tail;
        t->block = in_block ? inner / PER_BLOCK : 0;
        if (in_block) snprintf(t->name, sizeof t->name, "blocks.%d.", t->block);
        strcat(t->name, plan[t->kind].name);
        t->rows = plan[t->kind].rows, t->cols = plan[t->kind].cols, t->parts = plan[t->kind].parts;
        t->cap = plan[t->kind].cap;
        t->share = plan[t->kind].share;
        t->offset = m->size, t->size = (size_t)t->rows * (size_t)t->cols;
        m->size += t->size;
    }
}

// model_create: the table and its memory, with zero weights. The settings have passed config_check.
static Model *model_create(const Config *c) {
    Model *m = allocate(1, sizeof *m);
    m->config = *c;
    model_plan(m);
    m->weights = floats(m->size), m->momentum = floats(m->size);
    m->second = c->optimizer == ADAMW ? floats(m->size) : NULL;
    size_t half = (size_t)(c->width / c->heads / 2), n = (size_t)c->context * half;
    m->angles = floats(2 * n);
    for (size_t i = 0; i < n; i++) {
        double angle = (double)(i / half) * pow(10000, -(double)(i % half) / (double)half);
        m->angles[2 * i] = (float)cos(angle), m->angles[2 * i + 1] = (float)sin(angle);
    }
    return m;
}

static void model_free(Model *m) {
    free(m->tensors), free(m->weights), free(m->momentum), free(m->second), free(m->angles);
    free(m);
}

// Workspace: what one sequence needs, forward and backward. One per thread, so memory does not grow
// with the batch and a sequence stays in the cache of the core that works on it.
typedef struct {
    float *x, *mid;     // (T, d) the stream before attention and before the MLP
    float *qkv, *A, *y; // (T, 3d) after rope, (H, T, T), (T, d)
    float *z;           // (T, F) before the activation
} BlockState;

typedef struct {
    BlockState *blocks;         // L of them
    float *last, *logits;       // (T, d) after the last block, (T, V)
    float *a, *da;              // (T, F) after the activation
    float *dx, *dy, *dqkv, *dA; // (T, d), (T, d), (T, 3d), (T, T)
    float *memory;
} Workspace;

// workspace_layout: hands out the buffers from memory, or only counts them when it is NULL.
static size_t workspace_layout(Workspace *s, const Config *c, float *memory) {
    size_t T = (size_t)c->context, Td = T * (size_t)c->width, TF = Td * (size_t)c->mlp_ratio;
    size_t used = 0;
    #define TAKE(field, n) ((field) = memory ? memory + used : NULL, used += (n))
    for (BlockState *b = s->blocks; b < s->blocks + c->blocks; b++) {
        TAKE(b->x, Td), TAKE(b->mid, Td), TAKE(b->qkv, 3 * Td), TAKE(b->y, Td), TAKE(b->z, TF);
        TAKE(b->A, T * T * (size_t)c->heads);
    }
    TAKE(s->last, Td), TAKE(s->logits, T * (size_t)c->vocabulary), TAKE(s->a, TF), TAKE(s->da, TF);
    TAKE(s->dx, Td), TAKE(s->dy, Td), TAKE(s->dqkv, 3 * Td), TAKE(s->dA, T * T);
    #undef TAKE
    return used;
}

// workspaces_create: one for every thread that may ask (omp_get_thread_num() indexes them).
static Workspace *workspaces_create(const Config *c, int count) {
    Workspace *all = allocate((size_t)count, sizeof *all);
    for (int i = 0; i < count; i++) {
        all[i].blocks = allocate((size_t)c->blocks, sizeof(BlockState));
        all[i].memory = floats(workspace_layout(&all[i], c, NULL));
        workspace_layout(&all[i], c, all[i].memory);
    }
    return all;
}

static void workspaces_free(Workspace *all, int count) {
    for (int i = 0; i < count; i++) free(all[i].memory), free(all[i].blocks);
    free(all);
}

// config_check: what no single option's range can say; status is what to exit with.
static void config_check(const Config *c, int status) {
    if (c->width % c->heads)
        fail(status, "choose heads that divide the width", "--heads %d does not divide --width %d",
             c->heads, c->width);
    if (c->width / c->heads % 2)
        fail(status, "rope pairs the two halves of a head", "head width %d / %d = %d is odd",
             c->width, c->heads, c->width / c->heads);
    if (c->vocabulary > 65536)
        fail(status, "use fewer", "a vocabulary of %d, at most 65536", c->vocabulary);
    Model m = {.config = *c};
    Workspace s = {.blocks = allocate((size_t)c->blocks, sizeof(BlockState))};
    model_plan(&m);
    double need = (double)m.size * (c->optimizer + 2 + least(c->lanes, c->batch)) +
                  (double)workspace_layout(&s, c, NULL) * omp_get_max_threads() +
                  (double)c->context * c->width / c->heads;
    for (Tensor *t = m.tensors; t < m.tensors + m.count; t++)
        if (t->cap > 0 && t->cap < 1e-9)
            fail(status, "give more, or 0 for none", "the cap %g of %s is below 1e-9", t->cap,
                 t->name);
    free(m.tensors), free(s.blocks);
#ifdef _SC_PHYS_PAGES
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (need * sizeof(float) > memory)
        fail(status, "choose a smaller width, context, number of blocks or lanes",
             "these settings need %.3g GB, the machine has %.3g", need * sizeof(float) / 1e9,
             memory / 1e9);
#endif
}

// forward: from embeddings in s->blocks[0].x (T, d) to s->logits (T, V), for any T <= context.
static void forward(const Model *m, Workspace *s, int T) {
    const Config *c = &m->config;
    int d = c->width, H = c->heads, F = d * c->mlp_ratio, L = c->blocks, V = c->vocabulary;
    double keep = keep_of(c), share = share_of(c), scale = c->softmax_scale * H / d;
    float *w = m->weights;
    for (int l = 0; l < L; l++) {
        BlockState *b = &s->blocks[l];
        float *next = l + 1 < L ? s->blocks[l + 1].x : s->last;
        // W_q, W_k, W_v stand side by side in memory: one product makes q, k and v
        linear_forward(b->qkv, b->x, values(m, w, QUERY, l), NULL, T, d, 3 * d);
        rope(b->qkv, m->angles, 1, T, d, H);
        attention_forward(b->y, b->A, b->qkv, values(m, w, POSITION, l), scale, c->context, T, d,
                          H);
        mix_forward(b->mid, b->x, b->y, values(m, w, OUTPUT, l), keep, share * c->attention_factor,
                    T, d, d);
        linear_forward(b->z, b->mid, values(m, w, IN, l), values(m, w, IN_BIAS, l), T, d, F);
        activation_forward(s->a, b->z, (Activation)c->activation, T, F);
        mix_forward(next, b->mid, s->a, values(m, w, OUT, l), keep, share, T, F, d);
    }
    linear_forward(s->logits, s->last, values(m, w, HEAD, 0), values(m, w, HEAD_BIAS, 0), T, d, V);
}

// backward: s->logits holds dlogits; s->dx becomes the gradient of the embeddings, and g (laid out
// like the weights) is added to, unless it is NULL.
static void backward(const Model *m, Workspace *s, float *g, int T) {
    const Config *c = &m->config;
    int d = c->width, H = c->heads, F = d * c->mlp_ratio, L = c->blocks, V = c->vocabulary;
    double keep = keep_of(c), share = share_of(c), scale = c->softmax_scale * H / d;
    float *w = m->weights;
    memset(s->dx, 0, (size_t)T * d * sizeof(float));
    linear_backward(s->dx, values(m, g, HEAD, 0), values(m, g, HEAD_BIAS, 0), s->logits, s->last,
                    values(m, w, HEAD, 0), T, d, V);
    for (int l = L - 1; l >= 0; l--) {
        BlockState *b = &s->blocks[l];
        activation_forward(s->a, b->z, (Activation)c->activation, T, F); // cheaper than keeping it
        mix_backward(s->dx, s->da, values(m, g, OUT, l), s->a, values(m, w, OUT, l), keep, share,
                     T, F, d);
        activation_backward(s->da, b->z, (Activation)c->activation, T, F);
        linear_backward(s->dx, values(m, g, IN, l), values(m, g, IN_BIAS, l), s->da, b->mid,
                        values(m, w, IN, l), T, d, F);
        mix_backward(s->dx, s->dy, values(m, g, OUTPUT, l), b->y, values(m, w, OUTPUT, l), keep,
                     share * c->attention_factor, T, d, d);
        attention_backward(s->dqkv, s->dA, values(m, g, POSITION, l), s->dy, b->A, b->qkv, scale,
                           c->context, T, d, H);
        rope(s->dqkv, m->angles, -1, T, d, H);
        linear_backward(s->dx, values(m, g, QUERY, l), NULL, s->dqkv, b->x,
                        values(m, w, QUERY, l), T, d, 3 * d);
    }
}

// sequence_loss: summed loss of one sequence of T tokens and their targets; with a gradient g, also
// backward, for the mean over n tokens.
static double sequence_loss(const Model *m, Workspace *s, const uint16_t *tokens,
                            const uint16_t *targets, int T, float *g, double n, int *correct) {
    const Config *c = &m->config;
    embedding_forward(s->blocks[0].x, values(m, m->weights, EMBED, 0), tokens, T, c->width);
    forward(m, s, T);
    double loss = cross_entropy_forward(s->logits, targets, correct, T, c->vocabulary);
    if (!g) return loss;
    cross_entropy_backward(s->logits, targets, n, T, c->vocabulary);
    backward(m, s, g, T);
    embedding_backward(values(m, g, EMBED, 0), s->dx, tokens, T, c->width);
    return loss;
}

// ---------------------------------------------------------------------------------------------
// 5. Muon: momentum, made orthogonal (and AdamW). The update of a matrix is the direction that
// gains most among all of the same RMS->RMS norm: singular values are replaced by 1, so the size of
// a step does not depend on the gradient's. Here and in section 6 all work is on X = W /
// sqrt(fan_out/fan_in), (n, k) with n <= k: the wide one of W and its transpose, whose singular
// values are RMS->RMS norms.

typedef struct { float *x, *y, *gram, *gram2; } Scratch; // (n, k) twice, (n, n) twice

// orient: out (n, k) = scale W or scale W^T, whichever is wide, from W (rows, cols); or back. A
// cache line's worth of rows at a time, so that the transpose does not fetch a line per number.
static void orient(float *out, float *W, int rows, int cols, float scale, bool back) {
    for (int first = 0; first < rows; first += LINE)
        for (int j = 0; j < cols; j++)
            for (int i = first; i < least(first + LINE, rows); i++) {
                float *x = &out[rows <= cols ? (size_t)i * cols + j : (size_t)j * rows + i];
                float *w = &W[(size_t)i * cols + j];
                *(back ? w : x) = scale * *(back ? x : w);
            }
}

// gram_of: g (n, n) = a a^T: half is computed, half mirrored.     a (n, k)
static void gram_of(float *g, float *a, int n, int k) {
    matmul(mat(g, n, n), mat(a, n, k), transposed(mat(a, n, k)), 1, 0, LOWER_OUT);
    for (int first = 0; first < n; first += LINE) // by the cache line, as above
        for (int j = 0; j < n; j++)
            for (int i = j > first ? j : first; i < least(first + LINE, n); i++)
                g[(size_t)j * n + i] = g[(size_t)i * n + j];
}

// odd_polynomial: X <- (c0 I + c1 X X^T + c2 (X X^T)^2) X, which maps every singular value x to
// c0 x + c1 x^3 + c2 x^5 and leaves the singular vectors alone. Matrix products only.
static void odd_polynomial(Scratch *s, int n, int k, double c0, double c1, double c2) {
    gram_of(s->gram, s->x, n, k);
    if (c2 != 0) gram_of(s->gram2, s->gram, n, n);
    for (size_t i = 0; i < (size_t)n * n; i++)
        s->gram[i] = (float)c1 * s->gram[i] + (c2 != 0 ? (float)c2 * s->gram2[i] : 0);
    for (int i = 0; i < n; i++) s->gram[(size_t)i * (n + 1)] += (float)c0;
    matmul(mat(s->y, n, k), mat(s->gram, n, n), mat(s->x, n, k), 1, 0, FULL);
    float *swap = s->x;
    s->x = s->y, s->y = swap;
}

// orthogonalize: s->x (n, k) gets all singular values near 1, by six Newton-Schulz steps (paper,
// appendix on Muon). Values of at least 0.002 of the Frobenius norm end in [0.9956, 0.9993]; none
// ever exceeds 1, which the caps rely on: an update never overdraws its budget. (The usual
// five-step coefficients reach 1.20.) A zero matrix stays zero.
static void orthogonalize(Scratch *s, int n, int k) {
    static const double c[6][3] = {{3955, -8306, 5008}, {3735, -6681, 3463}, {3799, -6499, 3211},
                                   {4019, -6385, 2906}, {2677, -3029, 1162}, {2172, -1833, 682}};
    double frobenius = rms(s->x, (size_t)n * k) * sqrt((double)n * k);
    if (!(frobenius > 0)) return;
    for (size_t i = 0; i < (size_t)n * k; i++) s->x[i] = (float)((double)s->x[i] / frobenius);
    for (int i = 0; i < 6; i++)
        odd_polynomial(s, n, k, c[i][0] / 1024, c[i][1] / 1024, c[i][2] / 1024);
}

// update_rows: for embeddings and biases, whose norm is the largest RMS norm of a row. A row of E
// moves by u m_row / max(1/16, |m_row|) (paper; it hardly moves, as gradients of a mean loss are
// far smaller). Biases, ours, move every entry by u against the sign of its momentum: a step of RMS
// norm u whatever the gradient's size. (By m_row / |m_row| instead, the one distance with the
// largest gradient would take the whole step of a position bias.) Then a row beyond its cap is
// scaled back onto it.
static void update_rows(const Tensor *t, float *w, const float *m, double u) {
    for (int r = 0; r < t->rows; r++, w += t->cols, m += t->cols) {
        float step = (float)(u / larger(1.0 / 16, rms(m, t->cols)));
        for (int i = 0; i < t->cols; i++)
            w[i] -= t->kind == EMBED ? step * m[i] : (float)u * (float)((m[i] > 0) - (m[i] < 0));
        double norm = rms(w, t->cols);
        for (int i = 0; i < t->cols && t->cap > 0 && norm > t->cap; i++)
            w[i] *= (float)(t->cap / norm);
    }
}

// adamw: v is the running mean of g^2; every number decays by lambda eta, then moves by eta m /
// sqrt(v) (paper: no bias correction, all weights alike). Only afterwards is the norm of such a
// step known: the caps must measure it.
static void adamw(const Config *c, float *w, const float *m, float *v, const float *g, size_t n,
                  double eta) {
    float decay = (float)larger(0, 1 - c->weight_decay * eta);
    for (size_t i = 0; i < n; i++) {
        v[i] = (float)c->beta2 * v[i] + (float)(1 - c->beta2) * g[i] * g[i];
        w[i] = decay * w[i] - (float)(eta * (double)m[i] / (sqrt((double)v[i]) + 1e-8));
    }
}

// ---------------------------------------------------------------------------------------------
// 6. Caps: after every step each weight is put back into its ball, |W| <= w. The soft cap is the
// paper's best; its other constraints (paper, section on weight constraints) follow it.

// The float error that a step may add to a norm, relative. The coupling absorbs it. Tested, not
// proved: only "never above the budget" leans on it; the printed certificate measures the weights
// as they are.
#define ROUNDING 1e-6

// soft_cap_strength: the smallest a for which x <- x - a x^3, then x <- x + a x^3 brings x = k down
// to w (paper, the coupling):
//   k - 3 a^2 k^5 + 3 a^3 k^7 - a^4 k^9 = w,  with t = a k^2:  t^4 - 3 t^3 + 3 t^2 = (k - w) / k.
// The left side rises on [0, 1/3], to 0.2346: bisection.
static double soft_cap_strength(double k, double w) {
    double low = 0, high = 1.0 / 3;
    for (int i = 0; i < 60; i++) {
        double t = (low + high) / 2;
        *(t * t * (t * t - 3 * t + 3) < (k - w) / k ? &low : &high) = t;
    }
    return high / (k * k);
}

// soft_cap: s->x, whose singular values are at most `top`, gets all of them below the cap; those
// far below hardly move (the first order cancels). The paper's coupling covers t <= 1/3 only:
// beyond, the map is not monotone and values inside could pass the cap. So a large excess is
// removed in several applications, each by at most 23 %, inside the proven range (ours).
static void soft_cap(Scratch *s, int n, int k, double top, double cap) {
    top *= 1 + ROUNDING, cap *= 1 - ROUNDING;
    while (top > cap) {
        double goal = larger(cap, 0.77 * top), a = soft_cap_strength(top, goal);
        odd_polynomial(s, n, k, 1, -a, 0);
        odd_polynomial(s, n, k, 1, a, 0);
        top = goal;
    }
}

// matrix_sign: X = U S V^T becomes U V^T. Two rounds of orthogonalize, for values far below the
// largest, and two of x <- (3 x - x^3) / 2, which squares what is left of the error.
static void matrix_sign(Scratch *s, int n, int k) {
    for (int i = 0; i < 2; i++) orthogonalize(s, n, k);
    for (int i = 0; i < 2; i++) odd_polynomial(s, n, k, 1.5, -0.5, 0);
}

// hard_cap: singular values <- min(x, w), by min(w, x) = (w + x - |w - x|) / 2 and matrix products
// only: with the sign O of X, and S that of the symmetric w I - O X^T,
//   X <- (w O + X - S (w O - X)) / 2.
// (The paper's code has a fixed polynomial, whose slope 0.951 at 0 shrinks all at every step.)
static void hard_cap(Scratch *s, int n, int k, double cap) {
    size_t nk = (size_t)n * k;
    float *x = floats(2 * nk), *o = memcpy(x, s->x, nk * sizeof(float));
    o += nk;
    matrix_sign(s, n, k);
    memcpy(o, s->x, nk * sizeof(float));
    matmul(mat(s->x, n, n), mat(o, n, k), transposed(mat(x, n, k)), -1, 0, FULL);
    for (int i = 0; i < n; i++) s->x[(size_t)i * (n + 1)] += (float)cap;
    matrix_sign(s, n, n);
    for (size_t i = 0; i < nk; i++) {
        float half = (float)cap * o[i] / 2, x_half = x[i] / 2;
        o[i] = half - x_half, x[i] = half + x_half;
    }
    matmul(mat(x, n, k), mat(s->x, n, n), mat(o, n, k), -1, 1, FULL);
    memcpy(s->x, x, nk * sizeof(float));
    free(x);
}

typedef struct { double lower, upper; } Bracket; // lower <= truth <= upper
static Bracket spectral_norm(const float *W, int rows, int cols, float *direction); // section 7
static double bracket_width(double n);

static void scale_by(float *x, size_t n, double factor) {
    for (size_t i = 0; i < n; i++) x[i] = (float)(factor * (double)x[i]);
}

// add_top: X += factor sigma_1 u_1 v_1^T, given u (n), as sigma_1 v_1 = X^T u_1.
static void add_top(Scratch *s, int n, int k, const float *u, double factor) {
    for (int j = 0; j < k; j++) {
        double dot = 0;
        for (int i = 0; i < n; i++) dot += (double)u[i] * (double)s->x[(size_t)i * k + j];
        for (int i = 0; i < n; i++) s->x[(size_t)i * k + j] += (float)(factor * dot * (double)u[i]);
    }
}

// constrain: s->x after a step, back under its cap. `top` is the most its norm can be, infinity
// where only measuring can tell. Stiefel makes all singular values 0.9956 to 0.9993 of w (see
// orthogonalize). Normalizing needs a bound from above: with power iteration the paper's norms pass
// their caps by a tenth. Hammer sets the top singular value to w (made for AdamW, whose steps are
// of low rank), spectral decay takes a share of it, whatever w is: both leave the second one alone,
// and guarantee nothing.
static void constrain(Scratch *s, int n, int k, const Config *c, double top, double cap) {
    Constraint kind = (Constraint)c->constraint;
    size_t nk = (size_t)n * k;
    if (kind == SOFT && top < INFINITY) soft_cap(s, n, k, top, cap);
    if (kind == STIEFEL) orthogonalize(s, n, k), scale_by(s->x, nk, cap);
    if (kind == STIEFEL || (kind == SOFT && top < INFINITY)) return;
    float *u = s->gram2;
    Bracket norm = spectral_norm(s->x, n, k, u);
    double limit = cap;
    if (!(norm.lower > 0 && norm.upper < INFINITY)) return; // zero; or check_finite will say it
    if (kind == SOFT) soft_cap(s, n, k, norm.upper, cap);
    if (kind == HARD && norm.upper > cap) { // then only values far above it may be left there
        hard_cap(s, n, k, cap);
        norm = spectral_norm(s->x, n, k, NULL);
        if (norm.lower <= cap * (1 + ROUNDING)) limit = cap * bracket_width(n);
    }
    if ((kind == HARD || kind == NORMALIZE) && norm.upper > limit)
        scale_by(s->x, nk, cap / norm.upper);
    if (kind == HAMMER) add_top(s, n, k, u, cap / norm.lower - 1);
    if (kind == DECAY) add_top(s, n, k, u, -c->spectral_decay);
}

// update_matrix: one step for one matrix W (rows, cols). Muon, with momentum m: decay, the
// orthogonal update of norm u, the cap; w (1 - lambda u) + u is the largest norm that a step can
// produce. AdamW: the cap only. With random > 0 W is made instead: orthogonal, of that norm, from
// random numbers in m. (Two passes then: one would leave the smallest singular values of a random
// square matrix behind.)
static void update_matrix(const Config *c, float *W, float *m, int rows, int cols, double u,
                          double cap, double random) {
    int n = least(rows, cols), k = rows + cols - n;
    size_t nk = (size_t)n * k, nn = (size_t)n * n;
    double unit = sqrt((double)rows / cols), decay = larger(0, 1 - c->weight_decay * u);
    bool muon = c->optimizer == MUON;
    float *memory = floats(2 * (nk + nn));
    Scratch s = {memory, memory + nk, memory + 2 * nk, memory + 2 * nk + nn};
    if (muon || random > 0) orient(s.x, m, rows, cols, 1, false), orthogonalize(&s, n, k);
    if (random > 0) {
        orthogonalize(&s, n, k);
        orient(s.x, W, rows, cols, (float)(random * unit), true);
    } else {
        orient(muon ? s.y : s.x, W, rows, cols, (float)(decay / unit), false);
        for (size_t i = 0; i < nk && muon; i++) s.x[i] = s.y[i] - (float)u * s.x[i];
        if (cap > 0 || c->constraint == DECAY)
            constrain(&s, n, k, c, muon ? cap * decay + u : INFINITY, cap);
        orient(s.x, W, rows, cols, (float)unit, true);
    }
    free(memory);
}

// A task is a part of a tensor, or with slot 0 in the certificate all of it: what threads share
// out, largest first, so that they end together.
typedef struct { int tensor, slot; double cost; } Task;

static int by_cost(const void *a, const void *b) {
    double x = ((const Task *)a)->cost, y = ((const Task *)b)->cost;
    return (x < y) - (x > y);
}

// optimizer_step: m <- beta m + (1 - beta) g (no Nesterov, no bias correction), then every part of
// every tensor on its own, in parallel. eta is the learning rate of this step, gradient is summed.
static void optimizer_step(Model *m, const float *gradient, double eta) {
    const Config *c = &m->config;
    int count = 0;
    Task *tasks = allocate((size_t)m->count * (size_t)c->heads, sizeof *tasks);
    for (int i = 0; i < m->count; i++)
        for (int p = 0; p < m->tensors[i].parts; p++) {
            double rows = m->tensors[i].rows / m->tensors[i].parts, cols = m->tensors[i].cols;
            double side = is_matrix(m->tensors[i].kind) ? smaller(rows, cols) : 1;
            tasks[count++] = (Task){i, p, rows * cols * side};
        }
    qsort(tasks, (size_t)count, sizeof *tasks, by_cost);
    #pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < count; i++) {
        const Tensor *t = &m->tensors[tasks[i].tensor];
        size_t size = t->size / (size_t)t->parts, start = t->offset + size * (size_t)tasks[i].slot;
        float *w = m->weights + start, *momentum = m->momentum + start;
        for (size_t j = 0; j < size; j++)
            momentum[j] = (float)c->beta * momentum[j] + (float)(1 - c->beta) * gradient[start + j];
        double u = c->optimizer == MUON ? eta * t->share : 0;
        if (c->optimizer == ADAMW) // then only caps are left to do: u = 0
            adamw(c, w, momentum, m->second + start, gradient + start, size, eta);
        if (!is_matrix(t->kind)) update_rows(t, w, momentum, u);
        else if (c->optimizer == MUON || t->cap > 0 || c->constraint == DECAY)
            update_matrix(c, w, momentum, t->rows / t->parts, t->cols, u, t->cap, 0);
    }
    free(tasks);
}

// init_position_bias: ours. Head h of block l starts out looking h H^l tokens back (the digits of a
// distance in base H), so that together the blocks can hand over any of the last H^L tokens from
// the first step on. It costs nothing: A stays a convex combination.
#define POSITION_START 6
static void init_position_bias(const Tensor *t, float *b) {
    double distance = pow(t->rows, t->block);
    for (int h = 0; h < t->rows; h++)
        if (h * distance < t->cols)
            b[(size_t)h * t->cols + (size_t)(h * distance)] = POSITION_START;
}

// model_init: W_o, W_out, W_head, b_in and b_out start at zero; the other matrices
// (semi-)orthogonal with norm min(1, cap), rows of E with RMS norm min(1, cap) (paper).
static void model_init(Model *m, Rng *rng) {
    for (int i = 0; i < m->count; i++) {
        const Tensor *t = &m->tensors[i];
        int rows = t->rows / t->parts, cols = t->cols;
        float *w = m->weights + t->offset;
        double norm = t->cap > 0 ? smaller(1, t->cap) : 1;
        if (t->kind == POSITION) init_position_bias(t, w);
        if (t->kind > VALUE && t->kind != IN) continue;
        for (size_t j = 0; j < t->size; j++) w[j] = (float)rng_normal(rng);
        for (int p = 0; t->kind != EMBED && p < t->parts; p++, w += (size_t)rows * cols)
            update_matrix(&m->config, w, w, rows, cols, 0, 0, norm);
        for (int r = 0; t->kind == EMBED && r < rows; r++, w += cols) {
            float scale = (float)(norm / rms(w, cols));
            for (int j = 0; j < cols; j++) w[j] *= scale;
        }
    }
}

// ---------------------------------------------------------------------------------------------
// 7. The certificate. Domain: embeddings x in R^(T x d) with |x| <= R0 (the largest row of E, by
// construction at most its cap), a convex set; f(x) the logits; both in max-over-tokens RMS norm.
// Then |f(x) - f(y)| <= K |x - y| with K composed below from upper bounds of spectral norms. The
// numbered inequalities are those of dev/certificate.md, where each is proved.
//
//   (1) |W x| <= |W| |x|, |W| = sigma_max(W) sqrt(I/O); a head's rows of W_q are a (dh, d) matrix
//       of their own: |W^h| = sigma_max(W^h) sqrt(d/dh). The whole matrix's norm does not bound it.
//   (2) A convex combination of tokens is no larger than the largest: |A v| <= |v|.
//   (3) |score| <= beta_h = s |W_q^h||W_k^h| a^2 for |x| <= a, as <x, y>/dh <= |x||y| (rope
//       rotates: no norm changes).
//   (4) d(A v) = A dv + dA v, and dA v = E_A[(ds - E ds)(v - E v)] is at most std(ds) std(v) <=
//       max|ds| max|v|: no factor 2 for the softmax. |ds_ij| <= s(|dq||k| + |q||dk|), so a head is
//       F_h = |W_v^h| (1 + 2 beta_h)-Lipschitz.
//   (5) |concat_h y_h|^2 = mean_h |y_h|^2: heads enter as a root mean square.
//   (6) keep x + share F(x) is at most keep + share Lip(F), and as large as keep a + share |F|.
// The paper's accounting (printed beside it, for comparison) uses the whole matrices in (3),
// divides the MLP's constant by 1.1289 although gelu/1.1289 already has slope 1, lets s scale the
// value path and takes norms from power iteration, which converges from below: it can be exceeded.
//
// Rounding: everything is in double. A bound is inflated by more than the sum of its rounding
// errors (GRAM_ERROR for norms, COMPOSE_ERROR for the composition); K is carried as log10.

#ifdef __AVX512F__
enum { WIDE = 8, TILE = 4 };
#else
enum { WIDE = 4, TILE = 3 };
#endif
typedef double Wide __attribute__((vector_size(WIDE * sizeof(double))));

// gram_double: g = a a^T in double.     a (n, k) with k a multiple of WIDE, g (n, stride >= n)
// Tiles of TILE x TILE dot products stay in registers; half is computed, half mirrored. A tile that
// would pass the last row computes that row again.
static void gram_double(double *g, const double *a, int n, int k, int stride) {
    for (int i0 = 0; i0 < n; i0 += TILE)
        for (int j0 = 0; j0 <= i0; j0 += TILE) {
            Wide sum[TILE][TILE] = {{{0}}};
            const double *left[TILE], *right[TILE];
            for (int i = 0; i < TILE; i++) {
                left[i] = a + (size_t)least(i0 + i, n - 1) * k;
                right[i] = a + (size_t)least(j0 + i, n - 1) * k;
            }
            for (int p = 0; p < k; p += WIDE)
                for (int i = 0; i < TILE; i++)
                    for (int j = 0; j < TILE; j++)
                        sum[i][j] += *(const Wide *)(left[i] + p) * *(const Wide *)(right[j] + p);
            for (int i = i0; i < least(i0 + TILE, n); i++)
                for (int j = j0; j < least(j0 + TILE, n); j++) {
                    double dot = 0;
                    for (int p = 0; p < WIDE; p++) dot += sum[i - i0][j - j0][p];
                    g[(size_t)i * stride + j] = g[(size_t)j * stride + i] = dot;
                }
        }
}

// divide_by_norm: G <- G / |G|_F; returns |G|_F.
static double divide_by_norm(double *G, size_t n) {
    double sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += G[i] * G[i];
    double inverse = sum > 0 ? 1 / sqrt(sum) : 0;
    for (size_t i = 0; i < n; i++) G[i] *= inverse;
    return sqrt(sum);
}

// spectral_norm: sigma_max of W (rows, cols), from both sides. Gram iteration (Delattre et al.
// 2023): G = W W^T on the smaller side n, then G <- (G/|G|_F)^2 again and again. As sigma_max(G) <=
// |G|_F at every squaring, the collected scales bound sigma_max from *above*, within
// n^(1/2^(GRAM_STEPS+2)): 0.04 % at n = 256. The iterated G is also a power iteration of
// 2^GRAM_STEPS steps: any of its rows v gives the lower end |W^T v| / |v|, and the largest row is
// nearly the top singular vector, which `direction` (n) gets unless it is NULL. GRAM_ERROR: a
// product of length k errs by at most k eps/2 |a|_F^2, which is at most n k eps/2 of
// sigma_max(a)^2; step i enters the result with weight 2^-i, so sigma_max errs by less than n k
// eps: we take eight times that.
#define EPSILON 2.220446049250313e-16
#define GRAM_STEPS 12
#define GRAM_ERROR(n, k) (8 * ((k) + 64.0) * (n) * EPSILON)
static Bracket spectral_norm(const float *W, int rows, int cols, float *direction) {
    int n = least(rows, cols), k = rows + cols - n;
    int wide_n = (n + WIDE - 1) / WIDE * WIDE, wide_k = (k + WIDE - 1) / WIDE * WIDE;
    size_t side = (size_t)n * wide_n, bytes = (2 * side + (size_t)n * wide_k) * sizeof(double);
    double *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory)
        die("choose a smaller model", "out of memory: %.3g MB for a norm", (double)bytes / 1e6);
    memset(memory, 0, bytes);
    double *G = memory, *next = G + side, *a = next + side, lower = 0, largest = 0;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            a[rows <= cols ? (size_t)i * wide_k + j : (size_t)j * wide_k + i] =
                (double)W[(size_t)i * cols + j];
    gram_double(G, a, n, wide_k, wide_n);
    double norm = divide_by_norm(G, side), log_norm = log(norm);
    for (int step = 1; step <= GRAM_STEPS; step++) {
        gram_double(next, G, n, wide_n, wide_n);
        double *swap = G;
        G = next, next = swap;
        log_norm += ldexp(log(divide_by_norm(G, side)), -step);
    }
    const double *v = G; // the row of G with the largest norm
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < n; j++) sum += square(G[(size_t)i * wide_n + j]);
        if (sum > largest) largest = sum, v = G + (size_t)i * wide_n;
    }
    for (int j = 0; j < k; j++) {
        double sum = 0;
        for (int i = 0; i < n; i++) sum += a[(size_t)i * wide_k + j] * v[i];
        lower += square(sum);
    }
    for (int i = 0; i < n && direction; i++) direction[i] = (float)(v[i] / sqrt(largest));
    double error = GRAM_ERROR(n, k);
    Bracket found = {sqrt(lower / largest) * (1 - error), exp(log_norm / 2) * (1 + error)};
    free(memory);
    return norm == 0 ? (Bracket){0, 0} : isfinite(norm) ? found : (Bracket){0, INFINITY};
}

// bracket_width: the most that an upper end exceeds its norm by, with room for float rounding.
static double bracket_width(double n) {
    return pow(larger(n, 1), ldexp(1, -GRAM_STEPS - 2)) * (1 + 10 * ROUNDING);
}

// Norms: of every tensor as a whole (slot 0) and of its heads' slices (slots 1..H, q, k, v only).
typedef struct { int slots; Bracket *of; } Norms;

static bool is_sliced(Kind kind) { return kind == QUERY || kind == KEY || kind == VALUE; }

static Bracket *norm_of(const Model *m, const Norms *n, Kind kind, int block, int slot) {
    return &n->of[(size_t)(tensor(m, kind, block) - m->tensors) * (size_t)n->slots + (size_t)slot];
}

// part_norm: the norm of a head's slice or of a whole tensor; of embeddings and biases, the largest
// row's RMS norm.
static Bracket part_norm(const Model *m, const Tensor *t, int slot) {
    int rows = slot ? t->rows / m->config.heads : t->rows;
    float *w = m->weights + t->offset + (slot ? (size_t)(slot - 1) * rows * t->cols : 0);
    double unit = sqrt((double)t->cols / rows), largest = 0;
    Bracket b = is_matrix(t->kind) ? spectral_norm(w, rows, t->cols, NULL) : (Bracket){0, 0};
    if (is_matrix(t->kind)) return (Bracket){b.lower * unit, b.upper * unit};
    for (int r = 0; r < rows; r++) {
        double norm = rms(w + (size_t)r * t->cols, t->cols);
        largest = norm > largest || !isfinite(norm) ? norm : largest;
    }
    double error = (t->cols + 8) * EPSILON; // of a sum of squares and its root
    return (Bracket){largest * (1 - error), largest * (1 + error)};
}

static Norms norms_create(const Model *m) {
    int slots = m->config.heads + 1;
    return (Norms){slots, allocate((size_t)m->count * (size_t)slots, sizeof(Bracket))};
}

// norms_measure: from the weights, in parallel, largest first.
static void norms_measure(const Model *m, Norms *norms) {
    Task *tasks = allocate((size_t)m->count * (size_t)norms->slots, sizeof *tasks);
    int count = 0;
    for (int i = 0; i < m->count; i++)
        for (int slot = 0; slot < (is_sliced(m->tensors[i].kind) ? norms->slots : 1); slot++) {
            double rows = m->tensors[i].rows, cols = m->tensors[i].cols, n;
            rows = slot ? rows / m->config.heads : rows, n = smaller(rows, cols);
            if (rows > 0) tasks[count++] = (Task){i, slot, n * n * (rows + cols + GRAM_STEPS * n)};
        }
    qsort(tasks, (size_t)count, sizeof *tasks, by_cost);
    #pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < count; i++)
        norms->of[tasks[i].tensor * norms->slots + tasks[i].slot] =
            part_norm(m, &m->tensors[tasks[i].tensor], tasks[i].slot);
    free(tasks);
}

// norms_at_caps: what the caps allow. Unless heads are capped one by one, a slice may take all of
// its matrix's norm: sigma_max(W^h) <= sigma_max(W), so |W^h| <= sqrt(H) |W|. The slack covers the
// width of the bracket and float rounding: no measured certificate exceeds that of the caps.
static void norms_at_caps(const Model *m, Norms *norms) {
    for (int i = 0; i < m->count; i++) {
        const Tensor *t = &m->tensors[i];
        double cap = t->cap * bracket_width(smaller(t->rows, t->cols));
        double slice = t->parts > 1 ? cap : cap * sqrt(m->config.heads);
        for (int slot = 0; slot < norms->slots; slot++)
            norms->of[i * norms->slots + slot].upper = slot ? slice : t->parts > 1 ? 0 : cap;
    }
}

typedef struct { double activation, log10_sound, log10_paper; } Layer; // after each layer

typedef struct {
    double radius;                   // R0: the domain is |x| <= R0
    double log10_trunk;              // sound, from embeddings to the last block's output
    double log10_sound, log10_paper; // from embeddings to logits
    Layer *layers;                   // 2L of them: attention, MLP, attention, ...
} Certificate;

static Certificate certificate_create(const Model *m) {
    return (Certificate){.layers = allocate(2 * (size_t)m->config.blocks, sizeof(Layer))};
}

// score_bound: (3), beta_h of a head (1..H) for inputs of norm up to a.
static double score_bound(const Model *m, const Norms *n, int block, int head, double a) {
    return m->config.softmax_scale * norm_of(m, n, QUERY, block, head)->upper *
           norm_of(m, n, KEY, block, head)->upper * a * a;
}

// compose: both bounds from norms, layer by layer; the paper's with its own start, a = 1 and K =
// |E|. A layer takes fewer than H + 64 roundings, relative, and inherits those of `a` from all
// before it: COMPOSE_ERROR covers them, and those of the logs and their sums, at most `most`.
#define COMPOSE_ERROR(layers, heads, most) \
    (EPSILON * ((heads) + 64.0) * square((layers) + 2.0) * (1 + (most)))
static void compose(const Model *m, const Norms *n, double radius, Certificate *out) {
    const Config *c = &m->config;
    int H = c->heads;
    double keep = keep_of(c), share = share_of(c), factor = c->attention_factor;
    double slope = c->activation == GELU ? GELU_SLOPE / GELU_DIVISOR : 1; // of phi
    double shrink = c->activation == GELU ? 1 / GELU_DIVISOR : 1;         // |phi(z)| <= shrink |z|
    double a = radius, K = 0, most = 0, paper_a = 1;
    double paper_K = log10(norm_of(m, n, EMBED, 0, 0)->upper);
    for (int l = 0; l < c->blocks; l++) {
        double q = norm_of(m, n, QUERY, l, 0)->upper, k = norm_of(m, n, KEY, l, 0)->upper;
        double v = norm_of(m, n, VALUE, l, 0)->upper, o = norm_of(m, n, OUTPUT, l, 0)->upper;
        double in = norm_of(m, n, IN, l, 0)->upper, w_out = norm_of(m, n, OUT, l, 0)->upper;
        double bias = c->bias ? norm_of(m, n, IN_BIAS, l, 0)->upper : 0, F2 = 0, V2 = 0;
        for (int h = 1; h <= H; h++) {
            double v_h = norm_of(m, n, VALUE, l, h)->upper;
            F2 += square(v_h * (1 + 2 * score_bound(m, n, l, h, a))) / H; // (4) (5)
            V2 += square(v_h) / H;                                        // (2) (5)
        }
        K += log10(keep + share * factor * o * sqrt(F2)); // (6)
        a = keep * a + share * factor * o * sqrt(V2) * a;
        paper_K += log10(keep + share * factor * o * v * (1 + 2 * paper_a * paper_a * q * k) *
                                    c->softmax_scale);
        paper_a = keep * paper_a + share * factor * o * v * paper_a;
        out->layers[2 * l] = (Layer){a, K, paper_K};
        most = larger(most, fabs(K));
        K += log10(keep + share * w_out * slope * in);           // (6); biases cost nothing here,
        a = keep * a + share * w_out * shrink * (in * a + bias); // but they do here
        paper_K += log10(keep + share * w_out * in * shrink);
        paper_a = keep * paper_a + share * w_out * in * shrink * paper_a;
        out->layers[2 * l + 1] = (Layer){a, K, paper_K};
        most = larger(most, fabs(K));
    }
    double head = log10(norm_of(m, n, HEAD, 0, 0)->upper);
    K = isnan(K) ? INFINITY : isinf(K) ? K : K + COMPOSE_ERROR(2 * c->blocks, H, most);
    out->radius = radius, out->log10_trunk = K, out->log10_paper = paper_K + head;
    out->log10_sound = isnan(K + head) ? INFINITY : K + head; // 0 * infinity: nothing is claimed
}

// certify: the certificate of the weights as they are.
static void certify(const Model *m, Norms *norms, Certificate *out) {
    norms_measure(m, norms);
    compose(m, norms, norm_of(m, norms, EMBED, 0, 0)->upper, out);
}

// is_constrained: whether training enforces what the certificate states. If not, the numbers are a
// measurement of these weights (still sound), not a guarantee given by the settings.
static bool is_constrained(const Config *c) {
    return c->cap_qk > 0 && c->cap_v > 0 && c->cap_o > 0 && c->cap_in > 0 && c->cap_out > 0 &&
           c->cap_head > 0 && c->cap_embed > 0 && (!c->bias || c->cap_bias > 0) &&
           holds_caps(c);
}

// scale_caps: the budget's one knob: scores, MLP and head times `factor`. W_v and W_o stay as they
// are: with norms of about 1 they hand tokens over whole, which costs next to nothing.
static void scale_caps(Config *c, double factor) {
    c->cap_qk *= factor, c->cap_in *= factor, c->cap_out *= factor, c->cap_head *= factor;
}

// bound_at_caps: log10 of the sound bound that the caps times `factor` allow.
static double bound_at_caps(const Config *c, double factor) {
    Model m = {.config = *c};
    scale_caps(&m.config, factor);
    model_plan(&m);
    Norms norms = norms_create(&m);
    Certificate out = certificate_create(&m);
    norms_at_caps(&m, &norms);
    compose(&m, &norms, norm_of(&m, &norms, EMBED, 0, 0)->upper, &out);
    free(m.tensors), free(norms.of), free(out.layers);
    return out.log10_sound;
}

// apply_budget: scale the preset's caps so that the bound at the caps is K = c->lipschitz (ours).
// Every weight stays below its cap, and the bound rises with every norm: so the certificate of the
// weights is at most K after every single step.
static void apply_budget(Config *c) {
    double low = log(0.05), high = log(1000), goal = log10(c->lipschitz);
    if (bound_at_caps(c, exp(low)) > goal)
        die_usage("ask for more, or give a smaller --cap-embed",
                  "--lipschitz %g is too small for this profile: the smallest possible is %.4g",
                  c->lipschitz, 1.001 * pow(10, bound_at_caps(c, exp(low))));
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        *(bound_at_caps(c, exp(middle)) > goal ? &high : &low) = middle;
    }
    scale_caps(c, exp(low));
}

// From below. A certificate that nobody can violate may still be loose, so we look for the worst
// pair of inputs: whatever |f(x) - f(y)| / |x - y| it finds is a lower end of the true constant.

// largest_row: the largest RMS norm of a row of x (T, n), and which (unless NULL).
static double largest_row(const float *x, int T, int n, int *which) {
    double largest = -1;
    for (int t = 0; t < T; t++) {
        double norm = rms(x + (size_t)t * n, n);
        if (norm > largest && which) *which = t;
        largest = larger(norm, largest);
    }
    return largest;
}

// project: every token of x (T, d) into the ball |x - center| <= radius; center NULL is the origin.
static void project(float *x, const float *center, double radius, int T, int d) {
    for (int t = 0; t < T; t++, x += d, center = center ? center + d : NULL) {
        double sum = 0;
        for (int i = 0; i < d; i++) sum += square((double)x[i] - (center ? (double)center[i] : 0));
        double scale = radius / sqrt(sum / d);
        for (int i = 0; i < d && scale < 1; i++) {
            double c = center ? (double)center[i] : 0;
            x[i] = (float)(c + ((double)x[i] - c) * scale);
        }
    }
}

// add_direction: every token of x moves by `step` RMS units along its own gradient.
static void add_direction(float *x, const float *gradient, double step, int T, int d) {
    for (int t = 0; t < T; t++, x += d, gradient += d) {
        double norm = rms(gradient, d);
        for (int i = 0; i < d && norm > 0; i++) x[i] += (float)(step / norm * (double)gradient[i]);
    }
}

static void run(const Model *m, Workspace *s, const float *x, int T) { // forward from embeddings x
    memcpy(s->blocks[0].x, x, (size_t)T * m->config.width * sizeof(float));
    forward(m, s, T);
}

// pull_back: to = J^T u at x, for a direction u (V) of the logits at token t.
static void pull_back(const Model *m, Workspace *s, const float *x, const float *u, int t, int T,
                      float *to) {
    size_t V = (size_t)m->config.vocabulary;
    run(m, s, x, T);
    memset(s->logits, 0, (size_t)T * V * sizeof(float));
    memcpy(s->logits + (size_t)t * V, u, V * sizeof(float));
    backward(m, s, NULL, T);
    memcpy(to, s->dx, (size_t)T * m->config.width * sizeof(float));
}

// worst_pair: gradient ascent from x (T, d) on |f(x) - f(y)| / |x - y| inside |.| <= radius;
// returns the best ratio and leaves that pair in x and y. u is the response of the token that moved
// most; y - x follows J^T u at y, token by token (the best linear response under the max norm), and
// x follows the gradient of the ratio itself, J(y)^T u - J(x)^T u. What float rounding may have
// added to the response is taken off, so that it cannot pass for a violation.
static double worst_pair(const Model *m, Workspace *s, float *x, float *y, double radius, int T,
                         int steps, Rng *rng) {
    const Config *c = &m->config;
    int d = c->width, V = c->vocabulary, t = 0;
    size_t n = (size_t)T * d, N = (size_t)T * V;
    float *memory = floats(5 * n + N), *px = memory, *py = px + n, *gx = py + n, *gy = gx + n;
    float *shift = gy + n, *u = shift + n;
    double best = 0, rounding = 4e-7 * (4 * c->blocks + 2);
    memcpy(px, x, n * sizeof(float));
    for (size_t i = 0; i < n; i++) gy[i] = (float)rng_normal(rng);
    for (int step = 0; step < steps; step++) {
        project(px, NULL, radius, T, d);
        memcpy(py, px, n * sizeof(float));
        add_direction(py, gy, 0.02 * radius, T, d);
        project(py, NULL, radius, T, d);
        run(m, s, py, T);
        memcpy(u, s->logits, N * sizeof(float));
        run(m, s, px, T);
        double size = largest_row(u, T, V, NULL);
        for (size_t i = 0; i < N; i++) u[i] -= s->logits[i];
        for (size_t i = 0; i < n; i++) shift[i] = py[i] - px[i];
        double response = largest_row(u, T, V, &t), distance = largest_row(shift, T, d, NULL);
        double ratio = distance > 0 ? (response - rounding * size) / distance : 0;
        if (ratio > best) {
            best = ratio;
            memcpy(x, px, n * sizeof(float)), memcpy(y, py, n * sizeof(float));
        }
        pull_back(m, s, px, u + (size_t)t * V, t, T, gx);
        pull_back(m, s, py, u + (size_t)t * V, t, T, gy);
        for (size_t i = 0; i < n; i++) gx[i] = gy[i] - gx[i];
        double norm = largest_row(gx, T, d, NULL), pace = 0.5 * radius * (1 - (double)step / steps);
        for (size_t i = 0; i < n && norm > 0; i++) px[i] += (float)(pace / norm * (double)gx[i]);
    }
    free(memory);
    return best;
}

// Certified predictions, (14): at logits z with largest z_c, every other class j stays below as
// long as no embedding moves by more than (z_c - z_j) / (|w_c - w_j|_2 sqrt(d) K_trunk) in RMS
// norm, w_j the rows of W_head and K_trunk the constant of everything before it.

// head_distances: |w_i - w_j|_2 sqrt(d) for all pairs of rows of W_head, (V, V).
static double *head_distances(const Model *m) {
    int V = m->config.vocabulary, d = m->config.width;
    const float *w = values(m, m->weights, HEAD, 0);
    double *distances = doubles((size_t)V * V);
    for (size_t ij = 0; ij < (size_t)V * V; ij++) {
        const float *a = w + ij / V * d, *b = w + ij % V * d;
        double sum = 0;
        for (int k = 0; k < d; k++) sum += square((double)a[k] - (double)b[k]);
        distances[ij] = sqrt(sum * d) * (1 + (d + 8) * EPSILON);
    }
    return distances;
}

// margin: how far the trunk's output may move, in RMS norm, before the prediction at these logits
// can change; negative when the prediction is not the target.
static double margin(const float *z, int target, const double *distances, int V) {
    double room = INFINITY;
    for (int j = 0; j < V; j++) {
        double gap = (double)z[target] - (double)z[j], reach = distances[(size_t)target * V + j];
        if (j != target && gap <= 0) return -1;
        if (j != target && reach > 0) room = smaller(room, gap / reach);
    }
    return room;
}

// attack: projected gradient ascent on the loss, all embeddings of the window at once, within eps
// of x (T, d). safe[t] stays true while position t is predicted rightly at every point visited.
static void attack(const Model *m, Workspace *s, const float *x, const uint16_t *targets,
                   double eps, int steps, int T, bool *safe) {
    int d = m->config.width, V = m->config.vocabulary;
    float *moved = floats((size_t)T * d);
    memcpy(moved, x, (size_t)T * d * sizeof(float));
    for (int step = 0; step <= steps; step++) {
        run(m, s, moved, T);
        for (int t = 0; t < T; t++) {
            int correct = 0;
            cross_entropy_forward(s->logits + (size_t)t * V, targets + t, &correct, 1, V);
            safe[t] = safe[t] && correct;
        }
        cross_entropy_backward(s->logits, targets, T, T, V);
        backward(m, s, NULL, T);
        add_direction(moved, s->dx, eps / 4, T, d);
        project(moved, x, eps, T, d);
    }
    free(moved);
}

// ---------------------------------------------------------------------------------------------
// 8. Text: any file is a sequence of bytes, and its vocabulary the sorted set of its distinct bytes
// (65 for tinyshakespeare). A shard of uint16 tokens, as llm.c and modded-nanogpt write them, loads
// as it is. The first 90 % train, the rest validates.

typedef struct {
    uint16_t *tokens;
    size_t count, train;         // all of them; the first `train` are for training
    int vocabulary;
    unsigned char symbols[256];  // id -> byte, for text
    bool is_text;
    uint64_t fingerprint;        // FNV-1a of the file
} Data;

static unsigned char *read_file(const char *path, size_t *size, const char *hint) {
    FILE *file = fopen(path, "rb");
    struct stat status;
    if (!file || fstat(fileno(file), &status) != 0)
        die(hint, "cannot open %s: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode)) die(hint, "%s is not a regular file", path);
    *size = (size_t)status.st_size;
    unsigned char *bytes = allocate(*size + 1, 1);
    if (fread(bytes, 1, *size, file) != *size)
        die(hint, "cannot read all %zu bytes of %s", *size, path);
    fclose(file);
    return bytes;
}

// id_of: of a byte in a text's vocabulary, -1 if it is not there.
static int id_of(const Data *data, unsigned char byte) {
    const unsigned char *found =
        data->is_text ? memchr(data->symbols, byte, (size_t)data->vocabulary) : NULL;
    return found ? (int)(found - data->symbols) : -1;
}

// load_data: a text or a shard, read with the vocabulary of `known`, a trained model, or its own.
#define SHARD_MAGIC 20240520
static Data load_data(const char *path, int context, const Data *known) {
    Data data = {.fingerprint = 0xcbf29ce484222325u, .is_text = true};
    size_t size, header_size = 1024;
    unsigned char *bytes = read_file(path, &size, "run prepare_data.py, or give --data FILE");
    int32_t header[3] = {0}; // magic, version, number of tokens
    int largest = 0;
    bool seen[256] = {0};
    for (size_t i = 0; i < size; i++) {
        data.fingerprint = (data.fingerprint ^ bytes[i]) * 0x100000001b3u;
        seen[bytes[i]] = true;
    }
    memcpy(header, bytes, size < sizeof header ? 0 : sizeof header);
    data.count = size;
    if (header[0] == SHARD_MAGIC) {
        data.is_text = false, data.count = (size_t)header[2];
        if (header[1] != 1 || header[2] < 0 || size != header_size + 2 * data.count)
            die("fetch the shard again", "%s announces version %d and %d tokens but has %zu bytes",
                path, header[1], header[2], size);
    }
    for (int b = 0; b < 256 && data.is_text; b++)
        if (seen[b]) data.symbols[data.vocabulary++] = (unsigned char)b;
    if (known && known->is_text != data.is_text)
        die("give the kind of file it was trained on", "%s is %s, the model was trained on %s",
            path, data.is_text ? "text" : "a token shard", data.is_text ? "a token shard" : "text");
    const Data *with = known ? known : &data;
    data.tokens = allocate(data.count, sizeof(uint16_t));
    if (!data.is_text) memcpy(data.tokens, bytes + header_size, 2 * data.count);
    for (size_t i = 0; i < data.count; i++) {
        int id = data.is_text ? id_of(with, bytes[i]) : data.tokens[i];
        if (id < 0 || (known && id >= known->vocabulary))
            die("give data with the model's vocabulary", "%s %d of %s at %zu is not among its %d",
                data.is_text ? "byte" : "token", data.is_text ? bytes[i] : id, path, i,
                known->vocabulary);
        data.tokens[i] = (uint16_t)id;
        largest = id > largest ? id : largest;
    }
    free(bytes);
    data.train = (size_t)(0.9 * (double)data.count);
    if (data.count < 2 * (size_t)(context + 1) || data.count - data.train < 2)
        die("give a longer text or a smaller --context",
            "%s has %zu tokens, fewer than two windows of context %d + 1 and a validation split "
            "need", path, data.count, context);
    if (data.is_text && data.vocabulary < 2)
        die("give a text with at least two", "%s has a single distinct byte", path);
    if (known) memcpy(data.symbols, known->symbols, sizeof data.symbols);
    if (!data.is_text) data.vocabulary = (largest + 128) / 128 * 128; // 50257 becomes 50304
    if (known) data.vocabulary = known->vocabulary;
    return data;
}

// ---------------------------------------------------------------------------------------------
// 9. Checkpoints: safetensors, which PyTorch, JAX, NumPy and the rest read. 8 bytes of header
// length, a JSON header, then the numbers, little-endian and row-major. The reader trusts nothing:
// lengths are checked against the file before any memory is taken, and every refusal says why.

#if defined __BYTE_ORDER__ && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors is little-endian, and so must be the machine"
#endif
#define DTYPE (sizeof(float) == 4 ? "F32" : "F64") // the tests' double build writes doubles
#define REFETCH "give a checkpoint that lipgpt wrote, or fetch the file again"

typedef struct { char *text; size_t length, capacity; } Buffer;

__attribute__((format(printf, 2, 3)))
static void append(Buffer *b, const char *format, ...) {
    va_list arguments;
    for (int pass = 0; pass < 2; pass++) { // the first one counts
        va_start(arguments, format);
        size_t room = b->capacity - b->length;
        char *to = room ? b->text + b->length : NULL;
        size_t need = (size_t)vsnprintf(to, room, format, arguments) + 1;
        va_end(arguments);
        if (need <= room) {
            b->length += need - 1;
            return;
        }
        b->capacity = 2 * (b->capacity + need);
        if (!(b->text = realloc(b->text, b->capacity)))
            die("free some memory", "out of memory: %zu bytes of text", b->capacity);
    }
}

// open_file: path.tmp for writing, with the directories that its name needs, or death.
static FILE *open_file(const char *path) {
    char copy[FILE_SIZE];
    snprintf(copy, sizeof copy, "%s.tmp", path);
    for (char *p = strchr(copy + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = 0;
        if (mkdir(copy, 0777) != 0 && errno != EEXIST)
            die("choose another place", "cannot make the directory %s: %s", copy, strerror(errno));
        *p = '/';
    }
    FILE *file = fopen(copy, "w");
    if (!file) die("choose another place", "cannot write %s: %s", copy, strerror(errno));
    return file;
}

// finish_file: path.tmp is complete and becomes path, still open: whatever happens, path is never
// half written.
static void finish_file(FILE *file, const char *path) {
    char temporary[FILE_SIZE];
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    if (fflush(file) == 0 && !ferror(file) && fsync(fileno(file)) == 0 &&
        rename(temporary, path) == 0)
        return;
    int reason = errno;
    remove(temporary);
    die("make room on the disk, or choose another place", "cannot write %s: %s", path,
        strerror(reason));
}

// check_writable: that a file can be written later on.
static void check_writable(const char *path) {
    char temporary[FILE_SIZE];
    struct stat status;
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    fclose(open_file(path)), remove(temporary);
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
        die("choose another place", "%s is not a regular file", path);
}

// check_distinct: that no file which is to be written is another one that is read or written.
static void check_distinct(const char *const *paths, int count) {
    struct stat a, b;
    for (int i = 0; i < count; i++)
        for (int j = 0; j < i; j++)
            if (!strcmp(paths[i], paths[j]) ||
                (stat(paths[i], &a) == 0 && stat(paths[j], &b) == 0 && a.st_ino == b.st_ino &&
                 a.st_dev == b.st_dev))
                die("give each file its own name", "%s and %s are one file, and one would "
                    "overwrite the other", paths[j], paths[i]);
}

typedef struct { // a named tensor of a file: (rows, cols) numbers at bytes [begin, end) of the data
    char name[64];
    size_t rows, cols, begin, end;
    float *values; // to write from
} Entry;

// save_tensors: header and data. metadata is JSON text, `"key":"value",...`.
static void save_tensors(const char *path, const char *metadata, Entry *entries, int count) {
    Buffer header = {0};
    append(&header, "{\"__metadata__\":{%s}", metadata);
    for (size_t i = 0, begin = 0; i < (size_t)count; begin = entries[i++].end) {
        Entry *e = &entries[i];
        e->end = begin + e->rows * e->cols * sizeof(float);
        append(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%zu,%zu],\"data_offsets\":[%zu,%zu]}",
               e->name, DTYPE, e->rows, e->cols, begin, e->end);
    }
    append(&header, "}");
    while (header.length % 8) append(&header, " ");
    FILE *file = open_file(path);
    uint64_t length = header.length;
    fwrite(&length, 8, 1, file), fwrite(header.text, length, 1, file);
    for (Entry *e = entries; e < entries + count; e++)
        fwrite(e->values, sizeof(float), e->rows * e->cols, file);
    finish_file(file, path), fclose(file);
    free(header.text);
}

// A file as it is read: [at, end) is what is left of the header. Strings are decoded in place.
typedef struct {
    const char *path;
    unsigned char *bytes, *at, *end;
    size_t size, data, colons; // of the file; where its data starts; as many as entries or more
    Entry *entries;
    char *(*metadata)[2]; // key and value
    int count, metadata_count;
} File;

// next_is: whether the next character, white space aside, is c; if so it is taken.
static bool next_is(File *f, int c) {
    while (f->at < f->end && (*f->at == ' ' || *f->at == '\n' || *f->at == '\t' || *f->at == '\r'))
        f->at++;
    bool yes = f->at < f->end && *f->at == c;
    f->at += yes;
    return yes;
}

// expect: this text, in which every # stands for an integer that is read into numbers.
static void expect(File *f, const char *text, size_t *numbers) {
    for (; *text; text++) {
        if (*text != '#' && !next_is(f, *text))
            die(REFETCH, "%s: the header is not valid JSON: expected %s at byte %td", f->path, text,
                f->at - f->bytes);
        if (*text != '#') continue;
        if (next_is(f, -1) || f->at == f->end || !isdigit(*f->at))
            die(REFETCH, "%s: the header is not valid JSON: expected a number at byte %td", f->path,
                f->at - f->bytes);
        for (*numbers = 0; f->at < f->end && isdigit(*f->at); f->at++) {
            if (*numbers > (SIZE_MAX - 9) / 10)
                die(REFETCH, "%s: the number at byte %td is too large", f->path, f->at - f->bytes);
            *numbers = *numbers * 10 + (size_t)(*f->at - '0');
        }
        numbers++;
    }
}

static char *parse_string(File *f) { // \" and \\ are the only escapes that anybody needs here
    expect(f, "\"", NULL);
    unsigned char *text = f->at, *out = f->at;
    for (; f->at < f->end && *f->at != '"'; *out++ = *f->at++) {
        bool escaped = *f->at == '\\' && f->at + 1 < f->end;
        f->at += escaped;
        if (*f->at < 32 || (escaped && *f->at != '"' && *f->at != '\\'))
            die(REFETCH, "%s: the header is not valid JSON: bad character in a string at byte %td",
                f->path, f->at - f->bytes);
    }
    if (f->at == f->end)
        die(REFETCH, "%s: the header is not valid JSON: a string has no end", f->path);
    f->at++, *out = 0;
    return (char *)text;
}

static void parse_metadata(File *f, char *key) {
    f->metadata[f->metadata_count][0] = key;
    f->metadata[f->metadata_count++][1] = parse_string(f);
}

static void parse_entry(File *f, char *name) {
    Entry e;
    size_t n[4];
    if (strlen(name) >= sizeof e.name)
        die(REFETCH, "%s: the tensor name %.80s... is too long", f->path, name);
    strcpy(e.name, name);
    expect(f, "{\"dtype\":", NULL);
    char *dtype = parse_string(f);
    if (strcmp(dtype, DTYPE))
        die(REFETCH, "%s: tensor %s has dtype %s, expected %s", f->path, name, dtype, DTYPE);
    expect(f, ",\"shape\":[#,#],\"data_offsets\":[#,#]}", n);
    e.rows = n[0], e.cols = n[1], e.begin = n[2], e.end = n[3];
    if (e.cols && e.rows > SIZE_MAX / sizeof(float) / e.cols)
        die(REFETCH, "%s: the shape of tensor %s overflows", f->path, name);
    if (e.end < e.begin || e.end - e.begin != e.rows * e.cols * sizeof(float))
        die(REFETCH, "%s: tensor %s has %zu x %zu numbers but offsets %zu to %zu", f->path, name,
            e.rows, e.cols, e.begin, e.end);
    f->entries[f->count++] = e;
}

// parse_object: {"name": ..., ...} with a parser for what follows each name.
static void parse_object(File *f, void (*parse)(File *, char *)) {
    expect(f, "{", NULL);
    if (next_is(f, '}')) return;
    do {
        char *name = parse_string(f);
        expect(f, ":", NULL);
        if (parse == parse_entry && !strcmp(name, "__metadata__") && !f->metadata) {
            f->metadata = allocate(f->colons, sizeof *f->metadata);
            parse_object(f, parse_metadata);
        } else
            parse(f, name);
    } while (next_is(f, ','));
    expect(f, "}", NULL);
}

static int by_offset(const void *a, const void *b) {
    const Entry *x = a, *y = b;
    return x->begin != y->begin ? (x->begin > y->begin) - (x->begin < y->begin)
                                : (x->end > y->end) - (x->end < y->end);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const Entry *)a)->name, ((const Entry *)b)->name);
}

// open_tensors: read and check a whole safetensors file.
static File open_tensors(const char *path) {
    File f = {.path = path};
    uint64_t length = 0;
    size_t position = 0;
    f.bytes = read_file(path, &f.size, "give --model or --resume a checkpoint that lipgpt wrote");
    if (f.size < 8)
        die(REFETCH, "%s has %zu bytes, too few for a safetensors file", path, f.size);
    memcpy(&length, f.bytes, 8);
    if (length > 100000000 || length > f.size - 8)
        die(REFETCH, "%s is not a safetensors file, or truncated: a header of %llu bytes in a file "
            "of %zu", path, (unsigned long long)length, f.size);
    f.data = 8 + (size_t)length, f.at = f.bytes + 8, f.end = f.bytes + f.data;
    for (unsigned char *p = f.at; p < f.end; p++) f.colons += *p == ':';
    f.entries = allocate(f.colons, sizeof(Entry));
    parse_object(&f, parse_entry);
    if (next_is(&f, -1) || f.at != f.end)
        die(REFETCH, "%s: the header goes on after its JSON, at byte %td", path, f.at - f.bytes);
    qsort(f.entries, (size_t)f.count, sizeof(Entry), by_name);
    for (int i = 1; i < f.count; i++)
        if (!by_name(&f.entries[i - 1], &f.entries[i]))
            die(REFETCH, "%s: two tensors are named %s", path, f.entries[i].name);
    qsort(f.entries, (size_t)f.count, sizeof(Entry), by_offset);
    for (int i = 0; i < f.count; position = f.entries[i++].end)
        if (f.entries[i].begin != position)
            die(REFETCH, "%s: tensor %s starts at %zu of the data, where %zu is due", path,
                f.entries[i].name, f.entries[i].begin, position);
    if (position != f.size - f.data)
        die(REFETCH, "%s: the tensors end at %zu, the data at %zu: truncated?", path, position,
            f.size - f.data);
    return f;
}

static const char *metadata_of(const File *f, const char *key) {
    const char *value = NULL;
    for (int i = 0; i < f->metadata_count; i++) {
        if (strcmp(f->metadata[i][0], key)) continue;
        if (value) die(REFETCH, "%s: metadata %s stands twice", f->path, key);
        value = f->metadata[i][1];
    }
    if (!value) die(REFETCH, "%s: metadata %s is missing: no checkpoint of lipgpt", f->path, key);
    return value;
}

static uint64_t metadata_number(const File *f, const char *key, uint64_t most) {
    const char *text = metadata_of(f, key);
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno || value > most)
        die(REFETCH, "%s: metadata %s is \"%s\", expected 0 to %llu", f->path, key, text,
            (unsigned long long)most);
    return value;
}

// fill: copy a tensor of the file into memory, checking its shape and every number.
static void fill(const File *f, const char *prefix, const Tensor *t, float *to) {
    const Entry *e = NULL;
    char name[64];
    snprintf(name, sizeof name, "%s%s", prefix, t->name);
    for (int i = 0; i < f->count; i++) e = strcmp(f->entries[i].name, name) ? e : &f->entries[i];
    if (!e) die(REFETCH, "%s: tensor %s is missing", f->path, name);
    if (e->rows != (size_t)t->rows || e->cols != (size_t)t->cols)
        die(REFETCH, "%s: tensor %s is %zu x %zu, the settings want %d x %d", f->path, name,
            e->rows, e->cols, t->rows, t->cols);
    memcpy(to, f->bytes + f->data + e->begin, t->size * sizeof(float));
    for (size_t i = 0; i < t->size; i++)
        if (!isfinite(to[i]))
            die(REFETCH, "%s: tensor %s has %g at %zu", f->path, name, (double)to[i], i);
}

typedef struct { int step; Rng rng; uint64_t fingerprint; } Progress; // what a run has done so far

static void append_settings(Buffer *b, const Config *c); // both in section 11
static void read_settings(const File *f, Config *c);

static const char *const sets[] = {"", "momentum.", "second."}; // of tensors; the last for AdamW
static float *set_of(const Model *m, int set) {
    return set == 0 ? m->weights : set == 1 ? m->momentum : m->second;
}

// checkpoint_save: weights, momenta, settings, vocabulary, progress and certificate.
static void checkpoint_save(const char *path, const Model *m, const Data *data, const Progress *p,
                            const Certificate *certificate) {
    Buffer text = {0};
    append_settings(&text, &m->config);
    append(&text, "\"format\":\"lipgpt 2\",\"step\":\"%d\",\"rng\":\"%llu\",", p->step,
           (unsigned long long)p->rng.state);
    append(&text, "\"data_fingerprint\":\"%llu\",\"certificate_log10\":\"%.9g\",",
           (unsigned long long)p->fingerprint, certificate->log10_sound);
    append(&text, "\"paper_bound_log10\":\"%.9g\",\"constrained\":\"%d\",",
           certificate->log10_paper, is_constrained(&m->config));
    append(&text, "\"vocabulary_size\":\"%d\",\"vocabulary\":\"", data->vocabulary);
    for (int i = 0; data->is_text && i < data->vocabulary; i++)
        append(&text, "%02x", data->symbols[i]);
    append(&text, "\"");
    Entry *entries = allocate(3 * (size_t)m->count, sizeof *entries);
    int count = 0;
    for (int i = 0; i < (2 + m->config.optimizer) * m->count; i++) {
        const Tensor *t = &m->tensors[i % m->count];
        Entry *e = &entries[count];
        snprintf(e->name, sizeof e->name, "%s%s", sets[i / m->count], t->name);
        e->rows = (size_t)t->rows, e->cols = (size_t)t->cols;
        e->values = set_of(m, i / m->count) + t->offset;
        count += t->size > 0;
    }
    save_tensors(path, text.text, entries, count);
    free(entries), free(text.text);
}

// checkpoint_load: the model with its settings; vocabulary and progress are set, too.
static Model *checkpoint_load(const char *path, bool to_train, Data *vocabulary,
                              Progress *progress) {
    File f = open_tensors(path);
    Config c = {0};
    if (strcmp(metadata_of(&f, "format"), "lipgpt 2"))
        die(REFETCH, "%s: format %s, expected lipgpt 2", path, metadata_of(&f, "format"));
    read_settings(&f, &c);
    c.vocabulary = (int)metadata_number(&f, "vocabulary_size", 65536);
    *progress = (Progress){(int)metadata_number(&f, "step", INT_MAX),
                           {metadata_number(&f, "rng", UINT64_MAX)},
                           metadata_number(&f, "data_fingerprint", UINT64_MAX)};
    const char *hex = metadata_of(&f, "vocabulary");
    *vocabulary = (Data){.vocabulary = c.vocabulary, .is_text = *hex != 0};
    bool good = c.vocabulary >= 2 && strspn(hex, "0123456789abcdef") == strlen(hex) &&
                (!*hex || (c.vocabulary <= 256 && strlen(hex) == 2 * (size_t)c.vocabulary));
    for (int i = 0; *hex && good && i < c.vocabulary; i++) {
        char digits[3] = {hex[2 * i], hex[2 * i + 1]};
        vocabulary->symbols[i] = (unsigned char)strtoul(digits, NULL, 16);
        good = i == 0 || vocabulary->symbols[i] > vocabulary->symbols[i - 1];
    }
    if (!good)
        die(REFETCH, "%s: the vocabulary is not %d rising bytes in hexadecimal", path,
            c.vocabulary);
    c.batch = to_train ? c.batch : 1; // no gradients are needed: one lane
    config_check(&c, 1);
    Model plan = {.config = c};
    model_plan(&plan), free(plan.tensors);
    size_t need = (size_t)(2 + c.optimizer) * plan.size * sizeof(float);
    if (need != f.size - f.data)
        die(REFETCH, "%s has %zu bytes of data, its settings want %zu", path, f.size - f.data,
            need);
    Model *m = model_create(&c);
    int wanted = 0;
    for (Tensor *t = m->tensors; t < m->tensors + m->count; t++)
        for (int set = 0; set < 2 + c.optimizer && t->size; set++, wanted++)
            fill(&f, sets[set], t, set_of(m, set) + t->offset);
    for (size_t i = 0; m->second && i < m->size; i++)
        if (m->second[i] < 0) die(REFETCH, "%s: a mean square is negative", path);
    if (wanted != f.count)
        die(REFETCH, "%s has %d tensors, the settings want %d", path, f.count, wanted);
    free(f.entries), free(f.metadata), free(f.bytes);
    return m;
}

// ---------------------------------------------------------------------------------------------
// 10. The four commands. Parallelism is one idea: a batch is split in a fixed number of lanes, each
// with a gradient of its own; threads take lanes, lanes are summed in order. So the same seed gives
// the same bits for any number of threads. Evaluation goes parallel over windows in the same way.

typedef struct { // everything that a command holds; it ends with the process
    Model *m;
    Data data;
    Progress progress;
    Workspace *spaces; // one per thread
    Norms norms;
    Certificate certificate;
    float *lanes;      // gradients, (lanes, size of the model)
    int threads, lane_count, first, reported; // the steps at the start and at the last report
    double began, train_loss;
} Run;

static Run run_create(Model *m, Data data, Progress progress) {
    int threads = omp_get_max_threads(), lanes = least(m->config.lanes, m->config.batch);
    return (Run){m, data, progress, workspaces_create(&m->config, threads), norms_create(m),
                 certificate_create(m), floats((size_t)lanes * m->size), threads, lanes,
                 progress.step, -1, seconds(), 0};
}

static int run_free(Run *r, int status) {
    workspaces_free(r->spaces, r->threads), model_free(r->m);
    free(r->norms.of), free(r->certificate.layers), free(r->lanes), free(r->data.tokens);
    return status;
}

// batch_gradient: mean loss over the windows that begin at starts[], its gradient in r->lanes.
static double batch_gradient(Run *r, const size_t *starts) {
    const Config *c = &r->m->config;
    size_t size = r->m->size;
    double *losses = doubles((size_t)r->lane_count), loss = 0;
    double tokens = (double)c->batch * c->context;
    #pragma omp parallel for schedule(dynamic, 1)
    for (int lane = 0; lane < r->lane_count; lane++) {
        float *g = memset(r->lanes + (size_t)lane * size, 0, size * sizeof(float));
        int correct = 0;
        for (int i = lane; i < c->batch; i += r->lane_count) {
            const uint16_t *window = r->data.tokens + starts[i];
            losses[lane] += sequence_loss(r->m, &r->spaces[omp_get_thread_num()], window,
                                          window + 1, c->context, g, tokens, &correct);
        }
    }
    #pragma omp parallel for schedule(static)
    for (size_t chunk = 0; chunk < size; chunk += 4096)
        for (int lane = 1; lane < r->lane_count; lane++)
            for (size_t i = chunk; i < chunk + 4096 && i < size; i++)
                r->lanes[i] += r->lanes[(size_t)lane * size + i];
    for (int lane = 0; lane < r->lane_count; lane++) loss += losses[lane];
    free(losses);
    return loss / tokens;
}

typedef struct { double loss, accuracy, largest; int positions, correct; } Score; // largest entry

// evaluate: windows of the validation split that begin every `stride` tokens. seen[2L + 1], unless
// NULL, gets the largest RMS norm of a token before every layer and after the last.
static Score evaluate(const Run *r, int stride, int windows, double *seen) {
    const Model *m = r->m;
    int L = m->config.blocks, d = m->config.width;
    const uint16_t *tokens = r->data.tokens + r->data.train;
    Score total = {0}, *scores = allocate((size_t)windows, sizeof *scores);
    #pragma omp parallel for schedule(dynamic, 1)
    for (int w = 0; w < windows; w++) {
        Workspace *s = &r->spaces[omp_get_thread_num()];
        size_t start = (size_t)w * (size_t)stride, left = r->data.count - r->data.train - 1 - start;
        int T = left < (size_t)m->config.context ? (int)left : m->config.context;
        scores[w].positions = T;
        scores[w].loss = sequence_loss(m, s, tokens + start, tokens + start + 1, T, NULL, 1,
                                       &scores[w].correct);
        for (int i = 0; i <= 2 * L; i++) {
            const float *x = i == 2 * L ? s->last
                             : i % 2    ? s->blocks[i / 2].mid : s->blocks[i / 2].x;
            size_t n = (size_t)T * d;
            double entry = (double)largest_of(x, n, 1), least_entry = (double)largest_of(x, n, -1);
            double norm = seen ? largest_row(x, T, d, NULL) : 0;
            scores[w].largest = larger(scores[w].largest, larger(entry, least_entry));
            #pragma omp critical
            if (seen) seen[i] = larger(seen[i], norm);
        }
    }
    for (Score *s = scores; s < scores + windows; s++) {
        total.loss += s->loss, total.positions += s->positions, total.correct += s->correct;
        total.largest = larger(total.largest, s->largest);
    }
    free(scores);
    total.loss /= total.positions, total.accuracy = (double)total.correct / total.positions;
    return total;
}

// Two protocols, never to be compared: "full" is the whole validation split in consecutive windows,
// every target once; "slice" is the paper's, the 1280 windows that begin at its first 1280 tokens.
static Score evaluate_full(const Run *r, double *seen) {
    size_t count = r->data.count - r->data.train, T = (size_t)r->m->config.context;
    return evaluate(r, (int)T, (int)((count - 2 + T) / T), seen);
}

static Score evaluate_slice(const Run *r) {
    size_t count = r->data.count - r->data.train, T = (size_t)r->m->config.context;
    return evaluate(r, 1, count <= T ? 1 : count - T < 1280 ? (int)(count - T) : 1280, NULL);
}

// show_bound: a bound from its log10, also when it is too large for a double; never rounded down.
static double rounded_up(double x, double digits) { return ceil(x * digits) / digits; }
static const char *show_bound(double log10_bound) {
    static char texts[4][32];
    static int next;
    char *text = texts[next++ % 4];
    double bound = pow(10, smaller(log10_bound, 300));
    snprintf(text, sizeof texts[0], "%.6g", bound);
    if (strtod(text, NULL) < bound) snprintf(text, sizeof texts[0], "%.6g", bound * (1 + 5e-6));
    if (!(log10_bound < 300))
        snprintf(text, sizeof texts[0], "10^%.4f", rounded_up(log10_bound, 1e4));
    return text;
}

// largest_over_cap: of all norms, from their lower or upper ends, relative to their caps.
static double largest_over_cap(const Run *r, bool lower) {
    double largest = 0;
    for (int i = 0; i < r->m->count; i++) {
        const Tensor *t = &r->m->tensors[i];
        int slot = t->parts > 1, end = t->parts > 1 ? r->norms.slots : 1;
        for (; t->cap > 0 && t->size && slot < end; slot++) {
            Bracket b = r->norms.of[i * r->norms.slots + slot];
            largest = larger(largest, (lower ? b.lower : b.upper) / t->cap);
        }
    }
    return largest;
}

// print_results: the bounds and, with data, loss and accuracy, as name<TAB>value.
static void print_results(const Run *r, bool with_data, double *seen) {
    const Certificate *c = &r->certificate;
    if (with_data) {
        Score full = evaluate_full(r, seen), slice = evaluate_slice(r);
        printf("full_loss\t%.4f\nfull_accuracy\t%.4f\n", full.loss, full.accuracy);
        printf("slice_loss\t%.4f\nslice_accuracy\t%.4f\n", slice.loss, slice.accuracy);
        printf("largest_activation\t%.4g\n", full.largest);
    }
    double sound = c->log10_sound, paper = c->log10_paper;
    printf("certificate\t%s\ncertificate_log10\t%.6f\n", show_bound(sound),
           rounded_up(sound, 1e6));
    printf("paper_bound\t%s\npaper_bound_log10\t%.6f\n", show_bound(paper),
           rounded_up(paper, 1e6));
    if (!is_constrained(&r->m->config) || largest_over_cap(r, true) > 1 + 2 * ROUNDING)
        printf("note\tnot constrained: this is a measurement of these weights, not a guarantee\n");
}

// draw: a token from logits (V) at a temperature; 0 takes the largest.
static int draw(float *logits, int V, double temperature, Rng *rng) {
    int best = 0, choice = 0;
    double sum = 0, point = rng_uniform(rng);
    for (int v = 0; v < V; v++) best = logits[v] > logits[best] ? v : best;
    for (int v = 0; v < V; v++) logits[v] = (float)((double)logits[v] / larger(temperature, 1e-6));
    softmax(logits, V);
    while (choice < V - 1 && (sum += (double)logits[choice]) <= point) choice++;
    return temperature > 0 ? choice : best;
}

// write_sample: prompt and continuation. The context slides and nothing is cached.
static void write_sample(FILE *file, const Run *r, const Config *settings, const char *prompt) {
    const Config *c = &r->m->config;
    Workspace *s = r->spaces;
    const char *start = *prompt ? prompt : "\n"; // without a prompt, a new line begins
    int T = 0, length = (int)strlen(start);
    uint16_t *window = allocate((size_t)c->context, sizeof *window);
    Rng rng = {(uint64_t)settings->seed};
    for (const char *p = prompt; *p; p++)
        if (id_of(&r->data, (unsigned char)*p) < 0)
            die("use the characters of its training text",
                "byte %d of --prompt is not known to the model", (unsigned char)*p);
    for (int n = 0; n < length + settings->tokens; n++) {
        int token = n < length ? id_of(&r->data, (unsigned char)start[n]) : 0;
        if (n >= length) {
            embedding_forward(s->blocks[0].x, values(r->m, r->m->weights, EMBED, 0), window, T,
                              c->width);
            forward(r->m, s, T);
            token = draw(s->logits + (size_t)(T - 1) * c->vocabulary, c->vocabulary,
                         settings->temperature, &rng);
        }
        token = token < 0 ? 0 : token; // a model without new lines begins with its first symbol
        if (r->data.is_text && (n >= length || *prompt)) fputc(r->data.symbols[token], file);
        else if (n >= length) fprintf(file, "%d ", token);
        if (T == c->context) memmove(window, window + 1, (size_t)--T * sizeof *window);
        window[T++] = (uint16_t)token;
    }
    fputc('\n', file);
    free(window);
}

// check_step: what a debug build (make debug) asserts after every single step.
static void check_step(Run *r) {
    certify(r->m, &r->norms, &r->certificate);
    double over = largest_over_cap(r, true), budget = r->m->config.lipschitz;
    if (over > 1 + 2 * ROUNDING && holds_caps(&r->m->config))
        die("report this as a bug", "step %d: a norm is %.9f times its cap", r->progress.step,
            over);
    if (budget > 0 && is_constrained(&r->m->config) &&
        r->certificate.log10_sound > log10(budget))
        die("report this as a bug", "step %d: certificate %s is above the budget %g",
            r->progress.step, show_bound(r->certificate.log10_sound), budget);
}

// check_finite: stop at the first NaN or infinity; the last checkpoint stays as it was.
static void check_finite(const Model *m, const float *numbers, const char *what, int step) {
    for (Tensor *t = m->tensors; t < m->tensors + m->count; t++)
        for (size_t j = 0; j < t->size; j++)
            if (!isfinite(numbers[t->offset + j]))
                die("lower --lr or set caps; a checkpoint written before stays as it was",
                    "step %d: the %s of %s is not finite", step, what, t->name);
}

// train_step: draw windows, gradient, update. The learning rate falls linearly to zero (paper).
static void train_step(Run *r) {
    const Config *c = &r->m->config;
    size_t *starts = allocate((size_t)c->batch, sizeof *starts);
    for (int i = 0; i < c->batch; i++)
        starts[i] = rng_below(&r->progress.rng, r->data.train - (size_t)c->context);
    r->train_loss = batch_gradient(r, starts);
    free(starts);
    check_finite(r->m, r->lanes, "gradient", r->progress.step + 1);
    optimizer_step(r->m, r->lanes, c->lr * (1 - (double)r->progress.step / c->steps));
    r->progress.step++;
    check_finite(r->m, r->m->weights, "weight", r->progress.step);
    if (r->m->second) check_finite(r->m, r->m->second, "mean square", r->progress.step);
#ifdef CHECK_EVERY_STEP
    check_step(r);
#else
    (void)check_step;
#endif
}

// open_log: a new log with its header, or the old one up to the step that is resumed, where it must
// show the certificate of the weights: a log of another run would lose its rows.
static FILE *open_log(const char *path, int resumed_step, const char *certificate) {
    char line[1024], shown[32];
    int rows = 0, found = 0;
    Buffer text = {0};
    append(&text, "step\ttokens\ttrain_loss\tfull_loss\tfull_accuracy\tcertificate\tpaper_bound\t"
           "largest_activation\tlargest_norm_over_cap\tlr\tseconds\tcertificate_over_budget\n");
    FILE *old = resumed_step ? fopen(path, "r") : NULL;
    if (!old && resumed_step && errno != ENOENT)
        die("give another --log", "cannot read %s to go on with it: %s", path, strerror(errno));
    while (old && fgets(line, sizeof line, old)) {
        if (!isdigit((unsigned char)*line) || !strchr(line, '\n')) continue;
        rows++, found += atoi(line) == resumed_step &&
                         sscanf(line, "%*s %*s %*s %*s %*s %31s", shown) == 1 &&
                         !strcmp(shown, certificate);
        if (atoi(line) <= resumed_step) append(&text, "%s", line);
    }
    if (old) fclose(old);
    if (rows > 0 && !found)
        die("give another --log", "%s is of another run: its certificate of step %d is not %s",
            path, resumed_step, certificate);
    FILE *log = open_file(path);
    fputs(text.text, log), free(text.text);
    finish_file(log, path);
    return log;
}

// show_progress: what a terminal redraws after every step, and what follows each report.
static void show_progress(const Run *r, const char *after) {
    const Config *c = &r->m->config;
    double pace = (seconds() - r->began) / (r->progress.step - r->first); // seconds per step
    long long left = (long long)(pace * (c->steps - r->progress.step));
    fprintf(stderr, "%s%d/%d  train %.4f  %.0f tokens/s  ETA %lld:%02lld:%02lld%s", fresh_line(),
            r->progress.step, c->steps, r->train_loss, (double)c->batch * c->context / pace,
            left / 3600, left / 60 % 60, left % 60, after);
}

// report: validation, both bounds, one line of the log, a checkpoint.
static void report(Run *r, FILE *log) {
    const Config *c = &r->m->config;
    int step = r->reported = r->progress.step;
    Score full = evaluate_full(r, NULL);
    certify(r->m, &r->norms, &r->certificate);
    const char *K = show_bound(r->certificate.log10_sound);
    const char *paper = show_bound(r->certificate.log10_paper);
    char text[256];
    fprintf(log, "%d\t%.0f\t%.4f\t%.4f\t%.4f\t%s\t%s\t%.4g\t%.6f\t%.6g\t%.1f\t%.6g\n", step,
            (double)step * c->batch * c->context, r->train_loss, full.loss, full.accuracy, K, paper,
            full.largest, largest_over_cap(r, false), c->lr * (1 - (step - 1.0) / c->steps),
            seconds() - r->began,
            c->lipschitz > 0 ? pow(10, r->certificate.log10_sound) / c->lipschitz : 0);
    if (fflush(log) != 0) die("make room on the disk", "cannot write the log: %s", strerror(errno));
    checkpoint_save(c->out, r->m, &r->data, &r->progress, &r->certificate);
    snprintf(text, sizeof text, "  validation %.4f (%.2f %%)  certificate %s  paper's bound %s\n",
             full.loss, 100 * full.accuracy, K, paper);
    show_progress(r, text);
}

// start: a fresh model, or that of a checkpoint with its settings, but for those given again.
static Run start(Config *c) {
    Data trained_on;
    Progress progress = {0};
    Model *m = *c->resume ? checkpoint_load(c->resume, true, &trained_on, &progress) : NULL;
    if (m) {
        Config *loaded = &m->config;
        loaded->steps = c->steps ? c->steps : loaded->steps, loaded->stop = c->stop;
        if (*c->data) strcpy(loaded->data, c->data);
        strcpy(loaded->out, c->out), strcpy(loaded->log, c->log), strcpy(loaded->resume, c->resume);
        *c = *loaded;
    }
    config_check(c, 2);
    Data data = load_data(c->data, c->context, m ? &trained_on : NULL);
    if (!m) {
        c->vocabulary = data.vocabulary;
        config_check(c, 2);
        if (c->lipschitz > 0) apply_budget(c);
        m = model_create(c);
        progress = (Progress){0, {(uint64_t)c->seed}, data.fingerprint};
        model_init(m, &progress.rng);
    }
    if (data.fingerprint != progress.fingerprint)
        die("give the same file with --data", "%s is not the text of the run", c->data);
    if (progress.step >= c->steps)
        die("give more --steps", "%s is at step %d of %d already", c->resume, progress.step,
            c->steps);
    if (c->stop && progress.step >= c->stop)
        die_usage("give a later --stop", "%s is at step %d, --stop is %d", c->resume, progress.step,
                  c->stop);
    Run r = run_create(m, data, progress);
    if (*c->resume) certify(m, &r.norms, &r.certificate);
    if (*c->resume && largest_over_cap(&r, true) > 1 + 2 * ROUNDING && holds_caps(c))
        die(REFETCH, "%s: a norm is %.6g times its cap", c->resume, largest_over_cap(&r, true));
    return r;
}

static volatile sig_atomic_t interrupted;
static void on_interrupt(int signal_number) { interrupted = signal_number; }

static int command_train(Config *settings) {
    Run r = start(settings);
    const Config *c = &r.m->config;
    struct sigaction action = {.sa_handler = on_interrupt}; // a second Ctrl-C stops at once
    action.sa_flags = SA_RESTART | (int)SA_RESETHAND;
    char path[PATH_SIZE + 8];
    snprintf(path, sizeof path, "%s.txt", c->out);
    check_distinct((const char *const[]){c->data, c->out, path, c->log}, 4);
    check_writable(c->out), check_writable(path), check_writable(c->log); // not after hours
    FILE *log = open_log(c->log, r.first, show_bound(r.certificate.log10_sound));
    fprintf(stderr, "%zu parameters, %d threads, %d lanes; %s: %zu tokens, vocabulary %d\n",
            r.m->size, r.threads, r.lane_count, c->data, r.data.count, c->vocabulary);
    if (!is_constrained(c))
        fprintf(stderr, "not constrained: the certificate will measure, not guarantee\n");
    sigaction(SIGINT, &action, NULL);
    int step = r.first, end = c->stop && c->stop < c->steps ? c->stop : c->steps;
    while (step < end && !interrupted) {
        train_step(&r);
        step = r.progress.step;
        if (isatty(2)) show_progress(&r, "");
        if (step % c->eval_every == 0 || step == end) report(&r, log);
        if (c->sample_every && step % c->sample_every == 0 && step < end)
            fputs(fresh_line(), stderr), write_sample(stderr, &r, c, "");
    }
    if (r.reported != step && step > r.first) report(&r, log);
    if (step == c->steps) {
        print_results(&r, true, NULL);
        FILE *sample = open_file(path);
        write_sample(sample, &r, c, "");
        finish_file(sample, path), fclose(sample);
        printf("checkpoint\t%s\nsample\t%s\nlog\t%s\n", c->out, path, c->log);
    } else
        fprintf(stderr, "stopped at step %d of %d; go on with: ./lipgpt train --resume %s --log "
                "%s\n", step, c->steps, c->out, c->log);
    fclose(log);
    return run_free(&r, step < end ? 130 : 0);
}

// print_tables: every weight's norm from both sides and its cap; then what each layer adds. `seen`
// (2L + 1) are the largest RMS norms on data, or NULL. "-": there is no such number.
static void print_tables(const Run *r, const double *seen) {
    const Model *m = r->m;
    const Certificate *c = &r->certificate;
    printf("\nweight\tlower\tupper\tcap\n");
    for (int i = 0; i < m->count; i++)
        for (int slot = 0; m->tensors[i].size && slot < r->norms.slots; slot++) {
            const Tensor *t = &m->tensors[i];
            Bracket b = r->norms.of[i * r->norms.slots + slot];
            char head[32] = "", cap[32] = "-";
            if (slot) snprintf(head, sizeof head, "[head %d]", slot - 1);
            if (t->cap > 0 && (t->parts > 1) == (slot > 0)) snprintf(cap, sizeof cap, "%g", t->cap);
            if (slot == 0 || is_sliced(t->kind))
                printf("%s%s\t%.6g\t%.6g\t%s\n", t->name, head, b.lower, b.upper, cap);
        }
    printf("\nlayer\tactivation_bound\tlargest_seen\tcertificate\tpaper_bound\tscore_bounds\n");
    double before = c->radius;
    for (int i = -1; i < 2 * m->config.blocks; i++) {
        Layer embedding = {c->radius, 0, log10(norm_of(m, &r->norms, EMBED, 0, 0)->upper)};
        Layer row = i < 0 ? embedding : c->layers[i];
        char name[64] = "embedding", largest[32] = "-";
        if (i >= 0) snprintf(name, sizeof name, "blocks.%d.%s", i / 2, i % 2 ? "mlp" : "attention");
        if (seen) snprintf(largest, sizeof largest, "%.6g", seen[i + 1]);
        printf("%s\t%.6g\t%s\t%s\t%s\t", name, row.activation, largest, show_bound(row.log10_sound),
               show_bound(row.log10_paper));
        for (int h = 1; i >= 0 && i % 2 == 0 && h <= m->config.heads; h++)
            printf("%.4g ", score_bound(m, &r->norms, i / 2, h, before));
        printf(i < 0 || i % 2 ? "-\n" : "\n");
        before = row.activation;
    }
    printf("head\t-\t-\t%s\t%s\t-\n", show_bound(c->log10_sound), show_bound(c->log10_paper));
}

// print_search: the worst pair over restarts, from windows of the data and from random inputs.
static void print_search(const Run *r, const Config *settings, bool with_data) {
    enum { RESTARTS = 8 };
    const Model *m = r->m;
    int T = least(m->config.context, 64), d = m->config.width, winner = 0; // short windows suffice
    size_t n = (size_t)T * d, split = r->data.count - r->data.train;
    float *x = floats(n * RESTARTS), *y = floats(n * RESTARTS);
    double best[RESTARTS], radius = r->certificate.radius;
    #pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < RESTARTS; i++) {
        Rng rng = {(uint64_t)settings->seed * RESTARTS + (uint64_t)i};
        float *from = x + n * (size_t)i;
        for (size_t j = 0; j < n; j++) from[j] = (float)(radius * rng_normal(&rng));
        if (with_data && i % 2 && split > (size_t)T)
            embedding_forward(from, values(m, m->weights, EMBED, 0), r->data.tokens +
                              r->data.train + rng_below(&rng, split - (size_t)T), T, d);
        best[i] = worst_pair(m, &r->spaces[omp_get_thread_num()], from, y + n * (size_t)i,
                             radius / (1 + ROUNDING), T, settings->search_steps, &rng);
    }
    for (int i = 1; i < RESTARTS; i++) winner = best[i] > best[winner] ? i : winner;
    printf("lower_bound\t%.6g\ncertificate_over_lower_bound\t%.4g\n", best[winner],
           pow(10, r->certificate.log10_sound) / best[winner]);
    if (*settings->pair) { // so that the claim can be checked
        Entry entries[2] = {{"x", (size_t)T, (size_t)d, 0, 0, x + n * (size_t)winner},
                            {"y", (size_t)T, (size_t)d, 0, 0, y + n * (size_t)winner}};
        save_tensors(settings->pair, "\"what\":\"two embedded inputs of lower_bound\"", entries, 2);
        printf("pair\t%s\n", settings->pair);
    }
    free(x), free(y);
}

// print_predictions: shares of validation positions that are right and provably stay so, and that
// survive an actual attack, when every embedding of the window moves by up to eps: it may then
// leave |x| <= R0 by eps, so the trunk's constant is that of the larger domain.
static void print_predictions(const Run *r, const Config *settings) {
    const Model *m = r->m;
    int context = m->config.context, d = m->config.width, V = m->config.vocabulary;
    size_t split = r->data.count - r->data.train, available = (split - 2) / (size_t)context + 1;
    int windows = (size_t)settings->windows < available ? settings->windows : (int)available;
    double *distances = head_distances(m);
    Certificate at_eps = certificate_create(m);
    printf("\neps\tcertified_accuracy\taccuracy_under_attack\t(%d windows)\n", windows);
    for (int level = 0; level < 7; level++) {
        double eps = (const double[]){0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5}[level];
        int positions = 0, proven = 0, held = 0;
        compose(m, &r->norms, r->certificate.radius + eps, &at_eps);
        double reach = pow(10, at_eps.log10_trunk) * eps * (1 + 1e-9); // of the trunk's output
        #pragma omp parallel for schedule(dynamic, 1) reduction(+ : positions, proven, held)
        for (int w = 0; w < windows; w++) { // spread over the split
            Workspace *s = &r->spaces[omp_get_thread_num()];
            size_t start = available * (size_t)w / (size_t)windows * (size_t)context;
            int T = split - 1 - start < (size_t)context ? (int)(split - 1 - start) : context;
            const uint16_t *tokens = r->data.tokens + r->data.train + start;
            float *x = floats((size_t)T * d);
            bool *safe = memset(allocate((size_t)T, sizeof *safe), 1, (size_t)T);
            embedding_forward(x, values(m, m->weights, EMBED, 0), tokens, T, d);
            run(m, s, x, T);
            for (int t = 0; t < T; t++)
                proven += margin(s->logits + (size_t)t * V, tokens[t + 1], distances, V) > reach;
            attack(m, s, x, tokens + 1, eps, eps > 0 ? 20 : 0, T, safe);
            for (int t = 0; t < T; t++) held += safe[t];
            positions += T;
            free(x), free(safe);
        }
        printf("%g\t%.4f\t%.4f\n", eps, (double)proven / positions, (double)held / positions);
    }
    free(distances), free(at_eps.layers);
}

// measure: the model of --model, its certificate, and what data says of it; for certify also the
// search and the predictions. eval takes the text of the training unless another is given.
static int measure(Config *settings, bool is_eval) {
    Data data;
    Progress progress;
    if (*settings->pair && !settings->search_steps)
        die_usage("give it some", "--pair %s wants a search, but --search-steps is 0",
                  settings->pair);
    Model *m = checkpoint_load(settings->model, false, &data, &progress);
    if (is_eval && !*settings->data) strcpy(settings->data, m->config.data);
    bool with_data = *settings->data;
    check_distinct((const char *const[]){settings->pair, settings->model}, 2);
    check_distinct((const char *const[]){settings->pair, settings->data}, with_data ? 2 : 1);
    if (*settings->pair) check_writable(settings->pair);
    if (with_data) data = load_data(settings->data, m->config.context, &data);
    Run r = run_create(m, data, progress);
    double *seen = doubles(2 * (size_t)m->config.blocks + 1);
    certify(m, &r.norms, &r.certificate);
    if (with_data) printf("data\t%s\n", settings->data);
    print_results(&r, with_data, seen);
    if (!is_eval && settings->search_steps) print_search(&r, settings, with_data);
    print_tables(&r, with_data ? seen : NULL);
    if (!is_eval && settings->windows && with_data && m->config.vocabulary <= 4096) // (V, V)
        print_predictions(&r, settings);
    free(seen);
    return run_free(&r, 0);
}

static int command_eval(Config *settings) { return measure(settings, true); }
static int command_certify(Config *settings) { return measure(settings, false); }

static int command_sample(Config *settings) {
    Data vocabulary;
    Progress progress;
    Model *m = checkpoint_load(settings->model, false, &vocabulary, &progress);
    Run r = run_create(m, vocabulary, progress);
    write_sample(stdout, &r, settings, settings->prompt);
    return run_free(&r, 0);
}

// ---------------------------------------------------------------------------------------------
// 11. The command line. One table of options drives parsing, --help, the checkpoint's metadata and
// the checks of ranges. A preset is a row of settings, applied before what the user gives.

typedef enum { INTEGER, REAL, SWITCH, TEXT, CHOICE } Type;
enum { TRAIN = 1, EVAL = 2, CERTIFY = 4, SAMPLE = 8, SAVED = 16, // SAVED: goes into the checkpoint
       KEPT = TRAIN | SAVED };

typedef struct {
    const char *name;
    Type type;
    size_t offset;
    double low, high;     // the range
    const char *initial;
    int commands;
    const char *help;     // of a CHOICE, begins with its words: "a|b|c; ..."
} Option;

#define AT(field) offsetof(Config, field)
static const Option options[] = {
    {"data", TEXT, AT(data), 0, 0, "data/tinyshakespeare.txt", KEPT | EVAL | CERTIFY,
     "text, or token shard; eval: the model's own; certify: none unless given"},
    {"model", TEXT, AT(model), 0, 0, "out/lipgpt.safetensors", EVAL | CERTIFY | SAMPLE,
     "checkpoint"},
    {"out", TEXT, AT(out), 0, 0, "out/lipgpt.safetensors", TRAIN, "checkpoint to write"},
    {"log", TEXT, AT(log), 0, 0, "out/log.tsv", TRAIN, "table of reports to write"},
    {"resume", TEXT, AT(resume), 0, 0, "", TRAIN, "checkpoint to go on from, with its settings"},
    {"preset", CHOICE, AT(preset), 0, 2, "paper", KEPT,
     "paper|tight; paper: its network to the letter; tight: ours, the best at a sound bound"},
    {"steps", INTEGER, AT(steps), 1, 1e9, "2000", KEPT, "optimizer steps"},
    {"batch", INTEGER, AT(batch), 1, 1 << 20, "64", KEPT, "windows of a step"},
    {"context", INTEGER, AT(context), 1, 1 << 16, "256", KEPT, "tokens of a window, T"},
    {"width", INTEGER, AT(width), 2, 1 << 16, "256", KEPT, "of the residual stream, d"},
    {"heads", INTEGER, AT(heads), 1, 1 << 10, "4", KEPT, "of attention, H"},
    {"blocks", INTEGER, AT(blocks), 1, 1 << 10, "3", KEPT, "L"},
    {"mlp-ratio", INTEGER, AT(mlp_ratio), 1, 64, "4", KEPT, "hidden units / width (ours)"},
    {"residual", REAL, AT(residual), 0, 0.99, "0", KEPT,
     "weight of a layer in the stream (ours); 0 = the paper's 1/(2 blocks)"},
    {"plain-residual", SWITCH, AT(plain_residual), 0, 1, "0", KEPT, "x + F(x), not a convex mix"},
    {"attention-factor", REAL, AT(attention_factor), 1e-3, 1e3, "0.33333333333333331", KEPT,
     "the paper's 1/3"},
    {"softmax-scale", REAL, AT(softmax_scale), 1e-3, 1e6, "1", KEPT, "s in s q.k / dh"},
    {"activation", CHOICE, AT(activation), 0, 3, "gelu", KEPT,
     "gelu|abs|maxmin; the last two are ours"},
    {"position-bias", SWITCH, AT(position_bias), 0, 1, "0", KEPT,
     "learned score bias per head and distance (ours)"},
    {"bias", SWITCH, AT(bias), 0, 1, "0", KEPT, "MLP and logit biases (ours)"},
    {"per-head", SWITCH, AT(per_head), 0, 1, "0", KEPT,
     "update and cap every head's q, k, v on its own (ours)"},
    {"lr", REAL, AT(lr), 0, 1e6, "0.5", KEPT, "learning rate at the start"},
    {"optimizer", CHOICE, AT(optimizer), 0, 2, "muon", KEPT, "muon|adamw; adamw wants --lr 0.002"},
    {"beta", REAL, AT(beta), 0, 0.999999, "0.9", KEPT, "momentum"},
    {"beta2", REAL, AT(beta2), 0, 0.999999, "0.95", KEPT, "adamw's, of squared gradients"},
    {"constraint", CHOICE, AT(constraint), 0, 6, "soft", KEPT,
     "soft|hard|normalize|stiefel|hammer|decay; how caps are held (the last two hold none)"},
    {"spectral-decay", REAL, AT(spectral_decay), 0, 1, "0.01", KEPT,
     "share of the top singular value that --constraint decay takes"},
    {"mass", REAL, AT(mass), 1e-3, 1e6, "32", KEPT, "of the blocks in the modular norm; muon"},
    {"weight-decay", REAL, AT(weight_decay), 0, 1e3, "0", KEPT,
     "times the update's norm; adamw: times lr"},
    {"share-embed", REAL, AT(share_embed), 0, 1e6, "1", KEPT, "factor on its step (ours); muon"},
    {"share-head", REAL, AT(share_head), 0, 1e6, "1", KEPT, "factor on its step (ours); muon"},
    {"share-bias", REAL, AT(share_bias), 0, 1e6, "0.1", KEPT, "step of biases (ours); muon"},
    {"cap", REAL, AT(cap), 0, 1e6, "1.2", TRAIN, "of all matrices: RMS->RMS norm; 0 = none"},
    {"cap-qk", REAL, AT(cap_qk), 0, 1e6, "1.2", KEPT, "of W_q and W_k"},
    {"cap-v", REAL, AT(cap_v), 0, 1e6, "1.2", KEPT, "of W_v"},
    {"cap-o", REAL, AT(cap_o), 0, 1e6, "1.2", KEPT, "of W_o"},
    {"cap-in", REAL, AT(cap_in), 0, 1e6, "1.2", KEPT, "of W_in"},
    {"cap-out", REAL, AT(cap_out), 0, 1e6, "1.2", KEPT, "of W_out"},
    {"cap-head", REAL, AT(cap_head), 0, 1e6, "1.2", KEPT, "of W_head"},
    {"cap-embed", REAL, AT(cap_embed), 0, 1e6, "1", KEPT, "of the rows of E: RMS norm"},
    {"cap-bias", REAL, AT(cap_bias), 0, 1e6, "0.25", KEPT, "of b_in: RMS norm (ours)"},
    {"lipschitz", REAL, AT(lipschitz), 0, 1e300, "0", KEPT,
     "budget: scale the preset's caps so that the certificate never exceeds this; 0 = none"},
    {"lanes", INTEGER, AT(lanes), 1, 1 << 10, "8", KEPT, "parts of a batch: most threads used"},
    {"seed", INTEGER, AT(seed), 0, 2147483647, "0", KEPT | CERTIFY | SAMPLE, "of all draws"},
    {"eval-every", INTEGER, AT(eval_every), 1, 1e9, "100", KEPT, "steps between reports"},
    {"sample-every", INTEGER, AT(sample_every), 0, 1e9, "500", KEPT, "steps; 0 = never"},
    {"stop", INTEGER, AT(stop), 0, 1e9, "0", TRAIN, "stop and save at this step, as Ctrl-C would"},
    {"prompt", TEXT, AT(prompt), 0, 0, "", SAMPLE, "text to go on from"},
    {"tokens", INTEGER, AT(tokens), 0, 1e9, "500", KEPT | SAMPLE, "tokens of a sample"},
    {"temperature", REAL, AT(temperature), 0, 1e3, "0.8", KEPT | SAMPLE, "0 = always the best"},
    {"search-steps", INTEGER, AT(search_steps), 0, 1e9, "30", CERTIFY, "of the search from below"},
    {"pair", TEXT, AT(pair), 0, 0, "", CERTIFY, "file for the worst pair of inputs found"},
    {"windows", INTEGER, AT(windows), 0, 1e9, "16", CERTIFY, "to certify and attack"},
};
enum { OPTIONS = sizeof options / sizeof *options };

static const char *const presets[] = {
    "", // the paper's: the defaults of the table above
    "residual=0.5 attention-factor=1 activation=maxmin position-bias=1 bias=1 per-head=1 lr=0.3 "
    "cap-qk=0.1 cap-v=0.9 cap-o=1 cap-in=2.1 cap-out=2.1 cap-head=6 share-embed=500 share-head=20",
};
static const char *const cap_names[] = {"cap", "cap-qk", "cap-v", "cap-o", "cap-in", "cap-out",
                                        "cap-head"};

static const struct { const char *name; int command; int (*run)(Config *); } commands[] = {
    {"train", TRAIN, command_train}, {"eval", EVAL, command_eval},
    {"certify", CERTIFY, command_certify}, {"sample", SAMPLE, command_sample}};

static const Option *find_option(const char *name, size_t length) {
    for (int i = 0; i < OPTIONS; i++)
        if (strlen(options[i].name) == length && !strncmp(options[i].name, name, length))
            return &options[i];
    return NULL;
}

static const char *word_of(const Option *o, int i) { // the words of a CHOICE
    const char *word = o->help;
    while (i--) word += strcspn(word, "|;") + 1;
    return word;
}

// set_option: parse one value into the settings; `source` says where it came from, `status` is what
// to exit with when it is refused.
static void set_option(Config *c, const Option *o, const char *value, const char *source,
                       int status) {
    void *field = (char *)c + o->offset;
    char *end = NULL;
    double number = o->type == TEXT || o->type == CHOICE ? 0 : strtod(value, &end);
    if (o->type == TEXT) {
        bool clean = true;
        for (const char *p = value; *p && o->offset != AT(prompt); p++)
            clean = clean && !iscntrl((unsigned char)*p);
        if (strlen(value) >= PATH_SIZE || !clean)
            fail(status, "shorten it, or leave those out", "%s%s takes at most %d bytes without "
                 "control characters, got %zu", source, o->name, PATH_SIZE - 1, strlen(value));
        strcpy(field, value);
    } else if (o->type == CHOICE) {
        for (int i = 0; i < o->high; i++)
            if (strlen(value) == strcspn(word_of(o, i), "|;") &&
                !strncmp(word_of(o, i), value, strlen(value))) {
                *(int *)field = i;
                return;
            }
        fail(status, "see --help", "%s%s takes %.*s, got \"%s\"", source, o->name,
             (int)strcspn(o->help, ";"), o->help, value);
    } else if (!*value || isspace((unsigned char)*value) || *end || !(number >= o->low) ||
               number > o->high || (o->type != REAL && number != floor(number)))
        fail(status, "see --help", "%s%s takes %s from %g to %g, got \"%s\"", source, o->name,
             o->type == REAL ? "a number" : "an integer", o->low, o->high, value);
    else if (o->type == REAL) *(double *)field = number;
    else *(int *)field = (int)number;
}

// append_settings: "name":"value", for every saved option, as text that set_option reads back.
static void append_settings(Buffer *b, const Config *c) {
    for (const Option *o = options; o < options + OPTIONS; o++) {
        const void *field = (const char *)c + o->offset;
        if (!(o->commands & SAVED)) continue;
        append(b, "\"%s\":\"", o->name);
        for (const char *p = field; o->type == TEXT && *p; p++)
            append(b, *p == '"' || *p == '\\' ? "\\%c" : "%c", *p);
        if (o->type == REAL) append(b, "%.17g", *(const double *)field);
        if (o->type == INTEGER || o->type == SWITCH) append(b, "%d", *(const int *)field);
        const char *word = o->type == CHOICE ? word_of(o, *(const int *)field) : "";
        append(b, "%.*s\",", (int)strcspn(word, "|;"), word);
    }
}

static void read_settings(const File *f, Config *c) {
    char source[FILE_SIZE];
    snprintf(source, sizeof source, "%s: ", f->path);
    for (const Option *o = options; o < options + OPTIONS; o++)
        set_option(c, o, o->commands & SAVED ? metadata_of(f, o->name) : o->initial, source, 1);
}

static _Noreturn void usage(int status) {
    FILE *file = status ? stderr : stdout;
    fprintf(file, "lipgpt: a Lipschitz-constrained transformer. "
                  "Usage: ./lipgpt COMMAND [--key value]\n");
    for (int k = 0; k < 4; k++) {
        fprintf(file, "\n%s\n", commands[k].name);
        for (const Option *o = options; o < options + OPTIONS; o++)
            if (o->commands & commands[k].command)
                fprintf(file, "  --%-17s %s [%s]\n", o->name, o->help, o->initial);
    }
    if (fflush(file) != 0) status = 1;
    exit(status);
}

typedef struct { const char *value[OPTIONS]; } Given; // what the command line gave, by option

static const char *given_for(const Given *g, const char *name) {
    return g->value[find_option(name, strlen(name)) - options];
}

// read_arguments: --key value, --key=value; a switch alone is 1.
static Given read_arguments(int argc, char **argv, int command) {
    Given given = {{0}};
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) usage(0);
        const char *key = argv[i] + 2;
        size_t length = strcspn(argv[i], "=") - 2;
        const Option *o = strncmp(argv[i], "--", 2) ? NULL : find_option(key, length);
        if (!o || !(o->commands & command))
            die_usage("see ./lipgpt --help", "%s is not an option of %s", argv[i], argv[1]);
        const char *value = key[length] == '=' ? key + length + 1 : NULL;
        if (given.value[o - options]) die_usage("give it once", "--%s is given twice", o->name);
        if (!value && o->type == SWITCH &&
            (i + 1 == argc || (strcmp(argv[i + 1], "0") && strcmp(argv[i + 1], "1"))))
            value = "1";
        if (!value && ++i == argc)
            die_usage("see ./lipgpt --help", "--%s needs a value", o->name);
        given.value[o - options] = value ? value : argv[i];
        if (o->type == TEXT && !*given.value[o - options] && o->offset != AT(prompt))
            die_usage("see ./lipgpt --help", "--%s is empty", o->name);
    }
    return given;
}

// settings_from: defaults, then the preset, then --cap for all matrices, then what was given. A
// resumed run takes its settings from the checkpoint, but for a few.
static Config settings_from(const Given *given, int command) {
    static const char *const again[] = {"resume", "steps", "stop", "data", "out", "log"};
    Config c = {0};
    for (int i = 0; i < OPTIONS; i++)
        set_option(&c, &options[i], options[i].initial, "default ", 2);
    const char *preset = given_for(given, "preset"), *cap = given_for(given, "cap");
    if (preset) set_option(&c, find_option("preset", 6), preset, "--", 2);
    for (const char *row = presets[c.preset]; *row; row += strcspn(row, " "), row += *row == ' ') {
        char value[64];
        size_t name = strcspn(row, "=");
        snprintf(value, sizeof value, "%.*s", (int)strcspn(row + name + 1, " "), row + name + 1);
        set_option(&c, find_option(row, name), value, "preset ", 2);
    }
    for (int i = 1; cap && i < 7; i++)
        set_option(&c, find_option(cap_names[i], strlen(cap_names[i])), cap, "--cap for ", 2);
    for (int i = 0; i < OPTIONS; i++) {
        if (!given->value[i]) continue;
        set_option(&c, &options[i], given->value[i], "--", 2);
        bool allowed = !given_for(given, "resume");
        for (int j = 0; j < 6; j++) allowed = allowed || !strcmp(options[i].name, again[j]);
        if (!allowed)
            die_usage("leave it out", "--%s comes from the checkpoint when a run is resumed",
                      options[i].name);
    }
    for (int i = 0; c.lipschitz > 0 && i < 7; i++)
        if (given_for(given, cap_names[i]))
            die_usage("give one or the other",
                      "--lipschitz chooses the caps, but --%s is given, too", cap_names[i]);
    if (c.lipschitz > 0 && !holds_caps(&c))
        die_usage("choose soft, hard, normalize or stiefel",
                  "--lipschitz cannot be held by --constraint %s",
                  c.constraint == HAMMER ? "hammer" : "decay");
    if (c.lipschitz > 0 && (c.cap_embed == 0 || (c.bias && c.cap_bias == 0)))
        die_usage("give it a positive cap", "--lipschitz cannot be held with --%s 0",
                  c.cap_embed == 0 ? "cap-embed" : "cap-bias");
    if (command != TRAIN && !given_for(given, "data")) c.data[0] = 0; // see measure
    if (c.residual == 0) c.residual = 0.5 / c.blocks;
    if (*c.resume) { // 0 and "": as in the checkpoint
        c.steps = given_for(given, "steps") ? c.steps : 0;
        if (!given_for(given, "data")) c.data[0] = 0;
        if (!given_for(given, "out")) strcpy(c.out, c.resume);
    }
    return c;
}

int main(int argc, char **argv) {
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) usage(argc < 2 ? 2 : 0);
    for (int k = 0; k < 4; k++) {
        if (strcmp(argv[1], commands[k].name)) continue;
        Given given = read_arguments(argc, argv, commands[k].command);
        Config c = settings_from(&given, commands[k].command);
        int status = commands[k].run(&c);
        if (fflush(stdout) != 0 || ferror(stdout))
            die("make room", "cannot write to the standard output: %s", strerror(errno));
        return status;
    }
    die_usage("see ./lipgpt --help", "%s is not a command: train, eval, certify or sample",
              argv[1]);
}
