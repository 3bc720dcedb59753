// lipgpt: a Lipschitz-constrained transformer in one C file: train, evaluate, certify, sample.
//
// A function f is K-Lipschitz if |f(x) - f(y)| <= K |x - y|. This program trains a small language
// model whose weights are held inside spectral-norm balls after *every* optimizer step, and
// computes from them a number K that provably bounds how far a change of the embeddings can move
// the logits. The method is that of "Training Transformers with Enforced Lipschitz Constants"
// (arXiv 2507.13338, "the paper" below); what is not the paper's is marked "ours", or listed below.
//
//   make train                                       fetch Shakespeare, train, certify, sample
//   ./lipgpt certify --model out/lipgpt.safetensors  the certificate, layer by layer
//   ./lipgpt sample --model out/lipgpt.safetensors   write some Shakespeare
//
// What it refuses to do: GPUs, mixed precision, dropout, layer norm, packages beyond libc and libm
// (and OpenMP, where it is there).
// It does not recover from bad input: it says what was wrong and what to do, and stops (see fail).
//
// How to read it: top to bottom, as a lecture. 1 tools, 2 matrices, 3 spectral norms, 4 layers,
// each with its Lipschitz constant, 5 the model, 6 Muon, 7 caps, 8 the certificate: that is the
// method. The rest is plumbing: 9 text, 10 options, 11 checkpoints, 12 the four commands.
//
// Sizes, in every shape comment:            Units:
//   T  tokens of one sequence                 x in R^n: RMS norm, |x| = |x|_2 / sqrt(n)
//   d  width of the residual stream           a sequence (T, d): the largest RMS norm of its tokens
//   H  attention heads, dh = d / H wide       a weight (O, I), output and input sizes: the RMS->RMS
//   F  hidden units of the MLP                  operator norm, |W| = sigma_max(W) sqrt(I / O)
//   L  blocks: attention, then MLP            logits and loss: nats
//   V  size of the vocabulary                 caps and updates: RMS->RMS norm, or a row's RMS norm
//
// Symbols:
//   alpha   weight of a layer in the residual stream: x <- keep x + alpha layer(x), of which the
//           paper's has keep = 1 - alpha
//   s       softmax scale: scores are s q.k / dh
//   R0      largest RMS norm of a row of E: the domain is |x| <= R0
//   a       bound on the norm of the stream before a layer: |x| <= a
//   beta_h  bound on the scores of attention head h
//   u       RMS->RMS norm of a weight's update: learning rate eta times that weight's share
//   lambda  weight decay
//   K       the certificate: a proven Lipschitz constant from embeddings to logits
//   lane    one of --lanes parts of a batch, whatever the machine, with a gradient of its own
//
// Ours, not the paper's: the bound (section 8; the paper's is printed beside it) and what follows
// from it, the budget and certified predictions; Gram iteration, the exact hard cap and repeated
// soft caps; lanes; and the choices of the preset "tight": the residual W [x; F(x)], attention in
// the first block alone, no 1/3 on it, MaxMin for GELU, position and other biases with steps of
// their own, updates and caps head by head.

#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
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
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_max_threads(void) { return 1; }
#endif

#if defined __FAST_MATH__ || (defined __FINITE_MATH_ONLY__ && __FINITE_MATH_ONLY__)
#error "-Ofast and -ffast-math let NaN pass for a number: build with -O3"
#endif

// `make double` builds the same program in double precision: what changes was rounding, what stays
// is the method. (The checkpoints of one are not read by the other.)
#ifdef LIPGPT_DOUBLE
#ifdef __clang__
#pragma clang diagnostic ignored "-Wkeyword-macro"
#pragma clang diagnostic ignored "-Wpass-failed" // libm's exp stays a scalar call
#endif
#define float double
#endif

// ---------------------------------------------------------------------------------------------
// 1. Tools: one failure policy, memory, time, random numbers.

// fresh_line: on a terminal, what wipes out the progress line before something else is printed.
static const char *fresh_line(void) { return isatty(2) ? "\r\033[K" : ""; }

static const char *volatile unfinished;   // name of the temporary file being written, or NULL
static volatile sig_atomic_t interrupted; // the signal that asks a training run to stop, or 0

// on_signal: the first waits for the step to be saved, a second one for nothing.
static void on_signal(int signal_number) {
    bool again = interrupted && signal_number != SIGHUP; // a closing terminal may send that twice
    if (again && unfinished) unlink(unfinished);
    if (again) _exit(128 + signal_number);
    interrupted = signal_number;
}

// start_process: no file takes the place of a closed standard descriptor, where messages go; and a
// limit of file size is an error like others.
static void start_process(void) {
    for (int i = 0; i <= 2; i++)
        if (fcntl(i, F_GETFD) < 0) open("/dev/null", O_RDWR);
    signal(SIGXFSZ, SIG_IGN);
}

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
    if (unfinished) unlink(unfinished);
    exit(status);
}
#define die(...) fail(1, __VA_ARGS__)
#define die_usage(...) fail(2, __VA_ARGS__)

// allocate: count zeroed elements, aligned to a cache line, or death.
static void *allocate(size_t count, size_t size) {
    size_t bytes = (count * size / 64 + 1) * 64;
    void *memory = count > SIZE_MAX / 2 / size ? NULL : aligned_alloc(64, bytes);
    if (!memory)
        die("choose a smaller width, context, vocabulary or number of blocks",
            "out of memory: %.3g MB were wanted", (double)count * (double)size / 1e6);
    return memset(memory, 0, bytes);
}

static float *floats(size_t count) { return allocate(count, sizeof(float)); }
static double *doubles(size_t count) { return allocate(count, sizeof(double)); }
static double square(double x) { return x * x; }
static double max(double a, double b) { return a > b ? a : b; }
static double min(double a, double b) { return a < b ? a : b; }
static int imin(int a, int b) { return a < b ? a : b; }

static double seconds(void) { // since some fixed moment; never set back
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Random numbers: splitmix64 (Steele, Lea, Flood 2014). The state is one integer, so a checkpoint
// carries it and a resumed run draws the same windows.
typedef struct { uint64_t state; } Rng;

static uint64_t rng_next(Rng *rng) {
    rng->state += 0x9e3779b97f4a7c15u;
    uint64_t z = rng->state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double rng_uniform(Rng *rng) { return (double)(rng_next(rng) >> 11) * 0x1p-53; } // [0, 1)
static size_t rng_below(Rng *rng, size_t n) { return (size_t)(rng_next(rng) % n); } // [0, n)
static double rng_normal(Rng *rng) { // mean 0, variance 1: Box-Muller
    double radius = sqrt(-2 * log(1 - rng_uniform(rng)));
    return radius * cos(6.283185307179586 * rng_uniform(rng));
}

// ---------------------------------------------------------------------------------------------
// 2. Matrices: one product, C = scale A B (plus C, if add), does nearly all the work of this file.
// What it computes stands in twelve lines in the tests (reference_matmul); here is how to do that
// near the machine's peak. A multiply-add needs two numbers, so speed is reuse:
//
//                 NC columns: a block of B                tile: MR x NR sums of C, in registers
//                +-----+-----+-----+                      while the micro-kernel walks along k. A
//             KC | NR  |     |     |  panels of B,        step loads NR numbers of B, broadcasts
//           deep |  |  |     |     |  in the L2 cache     MR of A, and makes MR NR multiply-adds.
//                +--v--+-----+-----+
//         KC                                              panel: MR rows of A, or NR columns of B,
//     +--------+ +-----+-----+-----+                      copied (packed) so that a step finds its
//  MR | panel >| |tile |     |     |  a strip of C        numbers side by side: strides and
//     +--------+ +-----+-----+-----+                      transposes become alike, and zeros fill
//  in the L1 cache                                        what the matrix's edge cuts off.
//
// Of a transposed A a cache line's worth of rows is packed at once: no line is fetched twice.
typedef struct { float *p; int rows, cols; size_t row, col; } Mat; // (i, j) is at p[i*row + j*col]

// All of C; only C(i, j) with j <= i; A(i, k) counts as 0, whatever it is, for k > i; or for k < i.
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
enum { LINE = 16 }; // rows packed at once, a cache line of floats: MR divides it, it divides KC
typedef float Vec __attribute__((vector_size(VEC_BYTES), aligned(4), may_alias));
typedef float Four __attribute__((vector_size(4 * sizeof(float)), aligned(4), may_alias));

// Two requests to the compiler: constant arguments shape the code; and no loop is left.
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

INLINE Mat mat(float *p, int rows, int cols) { return (Mat){p, rows, cols, (size_t)cols, 1}; }
INLINE Mat transposed(Mat a) { return (Mat){a.p, a.cols, a.rows, a.col, a.row}; }
INLINE float *at(Mat a, int i, int j) { return a.p + (size_t)i * a.row + (size_t)j * a.col; }

// part: rows i.. and columns j.. of a matrix.
INLINE Mat part(Mat a, int i, int j, int rows, int cols) {
    return (Mat){at(a, i, j), rows, cols, a.row, a.col};
}

// pack: to[k * width + i] = a(i, k), zero for i >= a.rows: a panel. Rows that lie one after another
// are transposed 4 x 4 numbers at a time, by zipping rows 0, 2 and rows 1, 3, twice.
INLINE void pack(float *to, int width, Mat a) {
    if (a.rows < width) memset(to, 0, (size_t)(width * a.cols) * sizeof(float));
    if (a.row == 1) {
        for (int k = 0; k < a.cols; k++) // a size known when compiling becomes moves
            if (a.rows == width) memcpy(to + k * width, at(a, 0, k), (size_t)width * sizeof(float));
            else memcpy(to + k * width, at(a, 0, k), (size_t)a.rows * sizeof(float));
        return;
    }
    for (int i = 0; i < a.rows; i += 4) {
        int k = 0;
#if defined __clang__ || __GNUC__ >= 12
#define ZIP(x, q) (q % 2 ? __builtin_shufflevector(x[q / 2], x[q / 2 + 2], 2, 6, 3, 7) \
                         : __builtin_shufflevector(x[q / 2], x[q / 2 + 2], 0, 4, 1, 5))
        int whole = a.col == 1 && i + 4 <= a.rows ? a.cols / 4 * 4 : 0;
        for (; k < whole; k += 4) {
            Four r[4], z[4];
            UNROLL for (int q = 0; q < 4; q++) r[q] = *(const Four *)at(a, i + q, k);
            UNROLL for (int q = 0; q < 4; q++) z[q] = ZIP(r, q);
            UNROLL for (int q = 0; q < 4; q++) *(Four *)(to + (k + q) * width + i) = ZIP(z, q);
        }
#endif
        for (; k < a.cols; k++)
            for (int l = i; l < imin(i + 4, a.rows); l++) to[k * width + l] = *at(a, l, k);
    }
}

// micro_kernel: one tile of C (MR x vecs vectors) from two panels, walking `depth` steps.
INLINE void micro_kernel(int vecs, Mat c, const float *a, int a_step, const float *b, int depth,
                         float scale, bool add) {
    float edge[MR * NR]; // where a tile goes that the edge of C cuts
    Vec sum[MR][VECS] = {{{0}}};
    for (int k = 0; k < depth; k++, a += a_step, b += NR)
        UNROLL for (int i = 0; i < MR; i++)
            UNROLL for (int v = 0; v < vecs; v++) sum[i][v] += a[i] * ((const Vec *)b)[v];
    bool whole = c.rows >= MR && c.cols >= vecs * WIDTH;
    UNROLL for (int i = 0; i < MR; i++)
        UNROLL for (int v = 0; v < vecs; v++) {
            Vec *to = (Vec *)(whole ? at(c, i, 0) : edge + i * NR) + v;
            *to = whole && add ? *to + scale * sum[i][v] : scale * sum[i][v];
        }
    if (whole) return;
    for (int i = 0; i < imin(c.rows, MR); i++)
        for (int j = 0; j < imin(c.cols, vecs * WIDTH); j++)
            *at(c, i, j) = edge[i * NR + j] + (add ? *at(c, i, j) : 0);
}

// tile: a tile of C by the narrowest micro-kernel that covers its columns up to `cols`.
INLINE void tile(Mat c, int cols, const float *a, int a_step, const float *b, int depth,
                 float scale, bool add) {
    int vecs = (cols + WIDTH - 1) / WIDTH;
    if (vecs == 1) micro_kernel(1, c, a, a_step, b, depth, scale, add);
    else if (vecs == 2) micro_kernel(2, c, a, a_step, b, depth, scale, add);
    else micro_kernel(VECS, c, a, a_step, b, depth, scale, add);
}

static void matmul(Mat c, Mat a, Mat b, float scale, bool add, Triangle triangle) { // c.col is 1
    static _Thread_local _Alignas(64) float panel[LINE * KC], block[NC * KC];
    bool lower = triangle == LOWER_LEFT, upper = triangle == UPPER_LEFT;
    int group = a.row == 1 ? LINE : MR; // rows of A in a panel
    int first = 0;                      // the k where the packed panel begins
    for (int j0 = 0; j0 < c.cols; j0 += NC) for (int k0 = 0; k0 < a.cols; k0 += KC) {
        int nc = imin(NC, c.cols - j0), kc = imin(KC, a.cols - k0);
        for (int j = 0; j < nc; j += NR)
            pack(block + j * kc, NR, transposed(part(b, k0, j0 + j, kc, imin(NR, nc - j))));
        for (int i = triangle == LOWER_OUT ? j0 / LINE * LINE : 0; i < c.rows; i += MR) {
            int rows = imin(MR, c.rows - i), width = nc; // of this strip of C
            if (triangle == LOWER_OUT) width = imin(nc, i + rows - j0);
            int low = upper && i > k0 ? i : k0; // its k: low <= k < high, of a panel's up to `end`
            int high = lower ? imin(k0 + kc, i + rows) : k0 + kc;
            int end = lower ? imin(k0 + kc, i + group) : k0 + kc;
            if (i % group == 0 && low < end) {
                Mat next = part(a, i, low, imin(group, c.rows - i), end - low);
                if (group == LINE) pack(panel, LINE, next); // a width known when compiling
                else pack(panel, MR, next);
                first = low;
            }
            if (low >= high || width <= 0) continue;
            float *strip = panel + (low - first) * group + i % group;
            if ((lower || upper) && low <= i && i < high) { // all of the diagonal: LINE divides KC
                float *corner = strip + (i - low) * group;
                for (int p = 0; p < rows; p++)
                    for (int q = 0; q < p; q++) corner[lower ? p * group + q : q * group + p] = 0;
            }
            bool more = add || low > (upper ? i : 0); // the first part of a sum is stored
            for (int j = 0; j < width; j += NR)
                tile(part(c, i, j0 + j, rows, nc - j), imin(NR, width - j), strip, group,
                     block + j * kc + (low - k0) * NR, high - low, scale, more);
        }
    }
}

// rms: root mean square of n numbers, in double: the unit of every activation.
static double rms(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += square((double)x[i]);
    return sqrt(sum / (double)n);
}

// largest_row: the largest RMS norm of a row of x (rows, cols): the norm of a sequence, and that of
// an embedding table or of biases. NaN, if any row's is.
static double largest_row(const float *x, int rows, int cols) {
    double largest = 0;
    for (int r = 0; r < rows; r++) {
        double norm = rms(x + (size_t)r * cols, (size_t)cols);
        if (norm > largest || isnan(norm)) largest = norm;
    }
    return largest;
}

static void scale_by(float *x, size_t n, double factor) {
    for (size_t i = 0; i < n; i++) x[i] = (float)(factor * (double)x[i]);
}

// transpose: to (cols, rows) = scale from^T, from (rows, cols). A cache line's worth of rows at a
// time, so that no line is fetched per number.
static void transpose(float *to, const float *from, int rows, int cols, float scale) {
    for (int first = 0; first < rows; first += LINE)
        for (int j = 0; j < cols; j++)
            for (int i = first; i < imin(first + LINE, rows); i++)
                to[(size_t)j * rows + i] = scale * from[(size_t)i * cols + j];
}

// ---------------------------------------------------------------------------------------------
// 3. Spectral norms. Caps, updates and the certificate all speak of sigma_max, the largest singular
// value. Here are its two tools: a norm from above and from below, and the matrix whose singular
// values are nearly all 1. Rounding: norms are computed in double and inflated by more than the sum
// of their rounding errors (GRAM_ERROR; proof, for weights that a float can hold, in
// dev/certificate.md).

#define EPSILON 2.220446049250313e-16

enum { WIDE = VEC_BYTES == 64 ? 8 : 4, TILE = VEC_BYTES == 64 ? 4 : 3 };
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
                left[i] = a + (size_t)imin(i0 + i, n - 1) * k;
                right[i] = a + (size_t)imin(j0 + i, n - 1) * k;
            }
            for (int p = 0; p < k; p += WIDE)
                for (int i = 0; i < TILE; i++)
                    for (int j = 0; j < TILE; j++)
                        sum[i][j] += *(const Wide *)(left[i] + p) * *(const Wide *)(right[j] + p);
            for (int i = i0; i < imin(i0 + TILE, n); i++)
                for (int j = j0; j < imin(j0 + TILE, n); j++) {
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
// |G|_F for the last of them, the collected scales bound sigma_max from *above*, within
// n^(1/2^(GRAM_STEPS+2)): 0.034 % at n = 256. The iterated G is also a power iteration of
// 2^GRAM_STEPS steps: any of its rows v gives the lower end |W^T v| / |v|, and the largest row is
// nearly the top singular vector, which `direction` (n) gets unless it is NULL. GRAM_ERROR: a
// product of length k errs by at most k eps/2 |a|_F^2, which is at most n k eps/2 of
// sigma_max(a)^2; step i enters the result with weight 2^-i, so sigma_max errs by less than n k
// eps: we take eight times that.
#define GRAM_STEPS 12
#define GRAM_ERROR(n, k) (8 * ((k) + 64.0) * (n) * EPSILON)
typedef struct { double lower, upper; } Bracket; // lower <= truth <= upper

static Bracket spectral_norm(const float *W, int rows, int cols, float *direction) {
    int n = imin(rows, cols), k = rows + cols - n;
    int n_stride = (n + WIDE - 1) / WIDE * WIDE, k_stride = (k + WIDE - 1) / WIDE * WIDE;
    size_t side = (size_t)n * n_stride;
    double *a = doubles((size_t)n * k_stride), *G = doubles(side), *next = doubles(side);
    bool zero = true;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            double w = (double)W[(size_t)i * cols + j];
            a[rows <= cols ? (size_t)i * k_stride + j : (size_t)j * k_stride + i] = w;
            zero = zero && w == 0;
        }
    gram_double(G, a, n, k_stride, n_stride);
    double norm = divide_by_norm(G, side), log_norm = log(norm); // of sigma_max(a)^2, from above
    for (int step = 1; step <= GRAM_STEPS; step++) {
        gram_double(next, G, n, n_stride, n_stride);
        double *swap = G;
        G = next, next = swap;
        log_norm += ldexp(log(divide_by_norm(G, side)), -step);
    }
    double largest = 0, lower = 0, error = GRAM_ERROR(n, k);
    const double *v = G; // the largest row of G
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < n; j++) sum += square(G[(size_t)i * n_stride + j]);
        if (sum > largest) v = G + (size_t)i * n_stride;
        largest = max(largest, sum);
    }
    for (int j = 0; j < k; j++) {
        double sum = 0;
        for (int i = 0; i < n; i++) sum += a[(size_t)i * k_stride + j] * v[i];
        lower += square(sum);
    }
    if (direction)
        for (int i = 0; i < n; i++) direction[i] = (float)(v[i] / sqrt(largest));
    free(a), free(G), free(next);
    if (zero) return (Bracket){0, 0};
    if (!(norm > 1e-140 && norm < INFINITY)) return (Bracket){0, INFINITY}; // no float is so small
    return (Bracket){sqrt(lower / largest) * (1 - error), exp(log_norm / 2) * (1 + error)};
}

// The float error that a step may add to a norm, relative. Tested, not proved: only "never above
// the cap" leans on it; the printed certificate measures the weights as they are.
#define ROUNDING 1e-6

// bracket_width: the most that an upper end exceeds its norm by, with room for float rounding.
static double bracket_width(double n) {
    return pow(n, ldexp(1, -GRAM_STEPS - 2)) * (1 + 10 * ROUNDING);
}

// From here on a weight is worked on as X = W / sqrt(O/I), (n, k) with n <= k: the wide
// one of W and its transpose. The singular values of X are RMS->RMS norms.
typedef struct { int n, k; float *x, *y, *gram, *gram2; } Scratch; // (n, k) twice, (n, n) twice

static Scratch scratch_create(int rows, int cols) {
    int n = imin(rows, cols), k = rows + cols - n;
    size_t nk = (size_t)n * k, nn = (size_t)n * n;
    return (Scratch){n, k, floats(nk), floats(nk), floats(nn), floats(nn)};
}

static void scratch_free(Scratch *s) { free(s->x), free(s->y), free(s->gram), free(s->gram2); }

// widen: X (n, k) = scale W, or scale W^T if W (rows, cols) is tall.
static void widen(float *X, const float *W, int rows, int cols, double scale) {
    if (rows > cols) transpose(X, W, rows, cols, (float)scale);
    else
        for (size_t i = 0; i < (size_t)rows * cols; i++) X[i] = (float)scale * W[i];
}

// narrow: W (rows, cols) = scale X, or scale X^T if W is tall: the way back.
static void narrow(float *W, const float *X, int rows, int cols, double scale) {
    if (rows > cols) transpose(W, X, cols, rows, (float)scale);
    else
        for (size_t i = 0; i < (size_t)rows * cols; i++) W[i] = (float)scale * X[i];
}

// gram_of: g (n, n) = a a^T: half is computed, half mirrored.     a (n, k)
static void gram_of(float *g, float *a, int n, int k) {
    matmul(mat(g, n, n), mat(a, n, k), transposed(mat(a, n, k)), 1, false, LOWER_OUT);
    for (int first = 0; first < n; first += LINE) // by the cache line, as in transpose
        for (int j = 0; j < n; j++)
            for (int i = j > first ? j : first; i < imin(first + LINE, n); i++)
                g[(size_t)j * n + i] = g[(size_t)i * n + j];
}

// odd_polynomial: X <- (c0 I + c1 X X^T + c2 (X X^T)^2) X, which maps every singular value x to
// c0 x + c1 x^3 + c2 x^5 and leaves the singular vectors alone. Matrix products only.
static void odd_polynomial(Scratch *s, double c0, double c1, double c2) {
    int n = s->n, k = s->k;
    gram_of(s->gram, s->x, n, k);
    if (c2 != 0) gram_of(s->gram2, s->gram, n, n);
    for (size_t i = 0; i < (size_t)n * n; i++)
        s->gram[i] = (float)c1 * s->gram[i] + (c2 != 0 ? (float)c2 * s->gram2[i] : 0);
    for (int i = 0; i < n; i++) s->gram[(size_t)i * (n + 1)] += (float)c0;
    matmul(mat(s->y, n, k), mat(s->gram, n, n), mat(s->x, n, k), 1, false, FULL);
    float *swap = s->x;
    s->x = s->y, s->y = swap;
}

// orthogonalize: s->x (n, k) gets all singular values near 1: X / |X|_F has them in [0, 1], and six
// odd polynomials (Newton-Schulz steps; paper, appendix on Muon) lift them. The first four rows are
// steep, a small value grows almost fourfold in each; the last two flatten the top. Values of at
// least 0.002 of |X|_F end in [0.9956, 0.9993]; none ever exceeds 1, which the caps rely on: an
// update is never larger than it claims. (The usual five-step coefficients reach 1.20.) A zero
// matrix stays zero.
static void orthogonalize(Scratch *s) {
    static const double c[6][3] = {{3955, -8306, 5008}, {3735, -6681, 3463}, {3799, -6499, 3211},
                                   {4019, -6385, 2906}, {2677, -3029, 1162}, {2172, -1833, 682}};
    size_t nk = (size_t)s->n * s->k;
    double frobenius = rms(s->x, nk) * sqrt((double)nk);
    if (!(frobenius > 0)) return;
    for (size_t i = 0; i < nk; i++) s->x[i] = (float)((double)s->x[i] / frobenius);
    for (int i = 0; i < 6; i++)
        odd_polynomial(s, c[i][0] / 1024, c[i][1] / 1024, c[i][2] / 1024);
}

// ---------------------------------------------------------------------------------------------
// 4. Layers, forward then backward. Each is a serial function over ONE sequence; no layer knows of
// batches or threads. A backward takes what it needs of its forward's arguments, with d for
// gradients, and reads the forward pass backwards, line by line. Gradients of weights and of the
// residual stream are added (+=); scratch gradients, which have a single source, are set. Comments
// give the layer's Lipschitz constant and what it does to the norm: section 8 only composes those.

// fast_exp: e^x with relative error below 1e-7 on [-87, 87], clamped outside; NaN stays NaN. Only
// adds and multiplies, so that compilers turn a loop of it into vector code: x = n ln 2 + r, a
// polynomial in r, and n added to the exponent bits. The clamp compares |x| as an integer: of two
// float comparisons gcc makes branches. (The double build takes libm's.)
static inline float fast_exp(float x) {
#ifdef LIPGPT_DOUBLE
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
    float partial[16], largest = sign * x[0];
    for (int l = 0; l < 16; l++) partial[l] = largest;
    for (size_t i = 0; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++)
            partial[l] = sign * x[i + l] > partial[l] ? sign * x[i + l] : partial[l];
    for (size_t i = n / 16 * 16; i < n; i++)
        largest = sign * x[i] > largest ? sign * x[i] : largest;
    for (int l = 0; l < 16; l++) largest = partial[l] > largest ? partial[l] : largest;
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

// dE_token += dx_t.
static void embedding_backward(float *dE, const float *dx, const uint16_t *tokens, int T, int d) {
    for (int t = 0; t < T; t++)
        for (int i = 0; i < d; i++) dE[(size_t)tokens[t] * d + i] += dx[(size_t)t * d + i];
}

// linear: y = x W^T + b at every token.     x (T, I), W (O, I), b (O) or NULL, y (T, O)
// |W|-Lipschitz in RMS units, whatever b is; |y| <= |W| |x| + |b|.
static void linear_forward(float *y, float *x, float *W, const float *b, int T, int I, int O) {
    matmul(mat(y, T, O), mat(x, T, I), transposed(mat(W, O, I)), 1, false, FULL);
    if (!b) return;
    for (int t = 0; t < T; t++)
        for (int o = 0; o < O; o++) y[(size_t)t * O + o] += b[o];
}

// dx += dy W;  dW += dy^T x;  db += the sum of dy over tokens.  dW, db may be NULL: not asked for.
static void linear_backward(float *dx, float *dW, float *db, float *dy, float *x, float *W,
                            int T, int I, int O) {
    matmul(mat(dx, T, I), mat(dy, T, O), mat(W, O, I), 1, true, FULL);
    if (dW) matmul(mat(dW, O, I), transposed(mat(dy, T, O)), mat(x, T, I), 1, true, FULL);
    if (!db) return;
    for (int t = 0; t < T; t++)
        for (int o = 0; o < O; o++) db[o] += dy[(size_t)t * O + o];
}

// residual: y = keep x + alpha h W^T: a layer's last product, folded into the residual stream; or,
// ours, y = [x, alpha h] W^T: keep is 0, and the first S columns of W, d or 0, are for x.
//   x, y (T, d); h (T, I); W (d, S + I)
// The paper's stream is convex: keep = 1 - alpha, so no layer can enlarge it unless it is itself
// larger than 1; alpha = 1 / (2L), the layers' equal parts. Attention passes alpha times its factor
// (1/3: see there) as `alpha`. But orthogonal signals lose by it, at alpha = 1/2 down to 0.71 of
// their norm; side by side, both can be kept: the RMS norm of [x, h] is theirs' root mean square.
// Lipschitz, if h is K-Lipschitz: keep + alpha |W| K; |W| sqrt((d + I (alpha K)^2) / (d + I)).
static void residual_forward(float *y, float *x, float *h, float *W, double keep, double alpha,
                             int T, int S, int I, int d) {
    Mat w = mat(W, d, S + I), w_x = part(w, 0, 0, d, S), w_h = part(w, 0, S, d, I);
    for (size_t i = 0; i < (size_t)T * d; i++) y[i] = (float)keep * x[i];
    matmul(mat(y, T, d), mat(x, T, S), transposed(w_x), 1, true, FULL);
    matmul(mat(y, T, d), mat(h, T, I), transposed(w_h), (float)alpha, true, FULL);
}

// dh = alpha dy W_h;  dW += dy^T [x, alpha h];  dx = keep dy + dy W_x.
// dx arrives as dy and leaves as dx; spare (T, S) is scratch; dW may be NULL.
static void residual_backward(float *dx, float *dh, float *dW, float *spare, float *x, float *h,
                              float *W, double keep, double alpha, int T, int S, int I, int d) {
    Mat dy = mat(dx, T, d), w = mat(W, d, S + I), dw = mat(dW, d, S + I);
    matmul(mat(dh, T, I), dy, part(w, 0, S, d, I), (float)alpha, false, FULL);
    matmul(mat(spare, T, S), dy, part(w, 0, 0, d, S), 1, false, FULL);
    if (dW) {
        matmul(part(dw, 0, 0, d, S), transposed(dy), mat(x, T, S), 1, true, FULL);
        matmul(part(dw, 0, S, d, I), transposed(dy), mat(h, T, I), (float)alpha, true, FULL);
    }
    for (size_t i = 0; i < (size_t)T * d; i++) dx[i] *= (float)keep;
    for (size_t i = 0; i < (size_t)T * S; i++) dx[i] += spare[i];
}

// rope: rotate q and k by an angle that grows with position, so that q_i . k_j knows i - j.
//   qkv (T, cols) in place, q and k first; table (T, dh/2, 2): cos, sin of t 10000^(-i / (dh/2))
//   As in the paper's code the two *halves* of a head are paired, not even with odd entries.
// A rotation within a head: no norm and no distance changes. Backward is the inverse rotation.
static void rope(float *qkv, const float *table, int direction, int T, int cols, int qk, int H) {
    int half = qk / H / 2;
    for (int t = 0; t < T; t++)
        for (int h = 0; h < 2 * H; h++) { // the heads of q, then those of k
            float *low = qkv + (size_t)t * cols + (size_t)h * 2 * half, *high = low + half;
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
//   qkv (T, 2 qk + n): q, k, v side by side, each H heads; y (T, n)
//   qk = d, or 0, ours: b alone decides where a head looks, not what stands there
//   A (H, T, T), of which nothing above the diagonals counts
//   b (H, context) or NULL, ours: b_h[i - j] is added when token i looks at j
//   scale = s / dh, the paper's 1/dh and not 1/sqrt(dh): then |score| <= s |q||k| in RMS norms
// Per head: scores are at most beta_h = s |W_q||W_k| a^2 for |x| <= a, and the head is
// |W_v| (1 + 2 beta_h)-Lipschitz; b costs nothing, A stays a convex combination: |A v| <= |v|.
// Why the paper multiplies attention by 1/3: at s = 1, a = 1 and norms of 1 the constant is 1 + 2.
static void attention_forward(float *y, float *A, float *qkv, const float *b, double scale,
                              int context, int T, int qk, int n, int H) {
    int dh = qk / H, vh = n / H; // width of a head's q and k, and of its v
    Mat in = mat(qkv, T, 2 * qk + n), out = mat(y, T, n);
    for (int h = 0; h < H; h++) {
        Mat q = part(in, 0, h * dh, T, dh), k = part(in, 0, qk + h * dh, T, dh);
        Mat v = part(in, 0, 2 * qk + h * vh, T, vh), a = mat(A + (size_t)h * T * T, T, T);
        if (qk == 0) memset(a.p, 0, (size_t)T * T * sizeof(float));
        matmul(a, q, transposed(k), (float)scale, false, LOWER_OUT);
        for (int i = 0; i < T; i++) {
            if (b)
                for (int j = 0; j <= i; j++) *at(a, i, j) += b[(size_t)h * context + (i - j)];
            softmax(at(a, i, 0), i + 1);
        }
        matmul(part(out, 0, h * vh, T, vh), a, v, 1, false, LOWER_LEFT);
    }
}

// From y = A v:  dA = dy v^T;  dv = A^T dy.  From A = softmax(z), whose slope dA_ik/dz_ij is A_ij
// (1 - A_ij) for k = j and -A_ij A_ik else:  dz_ij = A_ij (dA_ij - sum_k A_ik dA_ik).  From z =
// scale q k^T + b:  dq = scale dz k;  dk = scale dz^T q;  db_(i-j) += dz_ij.
//   dA (T, T) is scratch and becomes dz; dqkv (T, 2 qk + n) is set; db (H, context) or NULL
static void attention_backward(float *dqkv, float *dA, float *db, float *dy, float *A, float *qkv,
                               double scale, int context, int T, int qk, int n, int H) {
    int dh = qk / H, vh = n / H;
    Mat in = mat(qkv, T, 2 * qk + n), din = mat(dqkv, T, 2 * qk + n), dz = mat(dA, T, T);
    for (int h = 0; h < H; h++) {
        Mat q = part(in, 0, h * dh, T, dh), k = part(in, 0, qk + h * dh, T, dh);
        Mat v = part(in, 0, 2 * qk + h * vh, T, vh), a = mat(A + (size_t)h * T * T, T, T);
        Mat out = part(mat(dy, T, n), 0, h * vh, T, vh);
        matmul(dz, out, transposed(v), 1, false, LOWER_OUT);
        matmul(part(din, 0, 2 * qk + h * vh, T, vh), transposed(a), out, 1, false, UPPER_LEFT);
        for (int i = 0; i < T; i++) {
            float *row = at(dz, i, 0), *p = at(a, i, 0), mean = 0;
            #pragma omp simd reduction(+ : mean)
            for (int j = 0; j <= i; j++) mean += p[j] * row[j];
            for (int j = 0; j <= i; j++) row[j] = p[j] * (row[j] - mean);
            if (db)
                for (int j = 0; j <= i; j++) db[(size_t)h * context + (i - j)] += row[j];
        }
        matmul(part(din, 0, h * dh, T, dh), dz, k, (float)scale, false, LOWER_LEFT);
        matmul(part(din, 0, qk + h * dh, T, dh), transposed(dz), q, (float)scale, false,
               UPPER_LEFT);
    }
}

// activation: a = phi(z), z and a (T, F).
//   GELU    z sigmoid(2g) / 1.1289, g = sqrt(2/pi) (z + 0.044715 z^3), the tanh form: |phi(z)| <=
//           |z| / 1.1289, and slope <= GELU_SLOPE / 1.1289: slightly above 1, and counted
//   MAXMIN  units i and i + F/2 become their max and their min, ours: 1-Lipschitz and |phi(z)| =
//           |z|, where GELU halves every small signal
#define GELU_DIVISOR 1.1289
#define GELU_SLOPE 1.1289931 // of the tanh form without the divisor: 1.128993069 at z = 1.4185
typedef enum { GELU, MAXMIN } Activation;
static const float gelu_linear = (float)0.7978845608028654, gelu_cubic = (float)0.044715;

static void activation_forward(float *a, const float *z, Activation phi, int T, int F) {
    size_t n = (size_t)T * F, half = (size_t)F / 2;
    if (phi == GELU)
        for (size_t i = 0; i < n; i++) {
            float x = z[i], g = gelu_linear * (x + gelu_cubic * x * x * x);
            a[i] = x / ((1 + fast_exp(-2 * g)) * (float)GELU_DIVISOR);
        }
    else
        for (int t = 0; t < T; t++, a += F, z += F)
            for (size_t i = 0; i < half; i++) {
                float x = z[i], y = z[i + half];
                a[i] = x < y ? y : x;
                a[i + half] = x < y ? x : y;
            }
}

// dz = phi'(z) da, in place: da becomes dz.
static void activation_backward(float *da, const float *z, Activation phi, int T, int F) {
    size_t n = (size_t)T * F, half = (size_t)F / 2;
    if (phi == GELU)
        for (size_t i = 0; i < n; i++) {
            float x = z[i], g = gelu_linear * (x + gelu_cubic * x * x * x);
            float dg = gelu_linear * (1 + 3 * gelu_cubic * x * x), s = 1 / (1 + fast_exp(-2 * g));
            da[i] *= (s + x * s * (1 - s) * 2 * dg) * (float)(1 / GELU_DIVISOR);
        }
    else
        for (int t = 0; t < T; t++, da += F, z += F)
            for (size_t i = 0; i < half; i++) {
                float top = da[i], bottom = da[i + half];
                bool swapped = z[i] < z[i + half];
                da[i] = swapped ? bottom : top;
                da[i + half] = swapped ? top : bottom;
            }
}

// cross entropy: logits (T, V) become probabilities in place; returns the summed loss in nats
// against targets (T), and counts the positions whose largest logit is the target's.
static double cross_entropy_forward(float *logits, const uint16_t *targets, int *correct, int T,
                                    int V) {
    double loss = 0;
    for (int t = 0; t < T; t++) {
        float *row = logits + (size_t)t * V, target = row[targets[t]];
        int best = 0;
        for (int v = 1; v < V; v++)
            if (row[v] > row[best]) best = v;
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

// draw: a token from logits (V) at a temperature; 0 takes the largest.
static int draw(float *logits, int V, double temperature, Rng *rng) {
    int best = 0, choice = 0;
    double sum = 0, point = rng_uniform(rng);
    for (int v = 0; v < V; v++)
        if (logits[v] > logits[best]) best = v;
    for (int v = 0; v < V; v++) logits[v] = (float)((double)logits[v] / max(temperature, 1e-6));
    softmax(logits, V);
    for (; choice < V - 1; choice++) {
        sum += (double)logits[choice];
        if (sum > point) break;
    }
    return temperature > 0 ? choice : best;
}

// ---------------------------------------------------------------------------------------------
// 5. The model: its settings, one table of tensors, one sequence forward and backward, then many.
//
//   x = E[token]
//   x = keep x + alpha factor Attention(x) W_o^T       ... for every block
//   x = keep x + alpha phi(x W_in^T + b_in) W_out^T
//   logits = x W_head^T + b_out                   no layer norm, no final norm
//
// The paper has keep = 1 - alpha, alpha = 1/(2L), factor = 1/3, phi = GELU/1.1289, no biases.
// Ours: x = [x, factor Attention(x)] W_o^T, and the MLP alike. The two lines between are called
// the trunk.

enum { PATH_SIZE = 1024, MOST_BLOCKS = 1024 };
typedef enum { TIGHT, PAPER, PAPER_145M } Preset;
typedef enum { CONVEX, PLAIN, CONCAT } Residual; // plain: keep = alpha = 1
typedef enum { MUON, ADAMW } Optimizer;                                         // section 6
typedef enum { SOFT, HARD, NORMALIZE, STIEFEL, HAMMER, DECAY } Constraint;      // section 7

typedef struct { // every setting of the program; section 10 gives names, defaults and ranges
    char data[PATH_SIZE], out[PATH_SIZE], log[PATH_SIZE], resume[PATH_SIZE], model[PATH_SIZE];
    char prompt[PATH_SIZE], val_data[PATH_SIZE], vocabulary_file[PATH_SIZE];
    Preset preset;
    int width, heads, blocks, context, mlp_ratio, vocabulary; // the network
    Activation activation;
    Residual residual;
    int value_ratio, attention_blocks;       // values per width; the first that have it, 0: all
    int position_bias, position_only, bias, per_head;         // 0 or 1
    double alpha, attention_factor, softmax_scale;            // 0: the paper's 1/(2L); 1/3; s
    Optimizer optimizer;                                      // training
    int steps, batch, lanes, seed;
    double lr, momentum, beta2, weight_decay, mass, share_embed, share_head, share_bias;
    double share_growth, margin;
    Constraint constraint;
    double cap, cap_qk, cap_v, cap_o, cap_in, cap_out, cap_head, cap_embed, cap_bias;
    double spectral_decay, lipschitz;                         // the budget for K
    int eval_every, eval_windows, sample_every, stop, tokens, windows; // the rest
    double temperature;
} Config;

// preset_config: the paper's network and training to the letter, or ours (dev/frontier.md says
// what each choice buys), or the paper's "145M" (162M with both ends) for internet text. There:
// caps of 1 by normalizing and a "final logit scale" of 8, which is a cap and a step of W_head 8
// times as large. Ours there: the small one's six steps of Newton-Schulz, softmax scale, shares
// and learning rate as in the small one, two lanes, and how often and on how much it reports.
static Config preset_config(Preset preset) {
    Config c = {.preset = preset, .data = "data/tinyshakespeare.txt", .log = "out/log.tsv",
                .out = "out/lipgpt.safetensors", .model = "out/lipgpt.safetensors", .width = 256,
                .heads = 4, .blocks = 3, .context = 256, .mlp_ratio = 4, .value_ratio = 1,
                .softmax_scale = 1, .steps = 2000, .lanes = 8, .momentum = 0.9, .beta2 = 0.95,
                .mass = 32, .share_bias = 0.1, .cap_embed = 1, .cap_bias = 0.25,
                .spectral_decay = 0.01, .eval_windows = 512, .sample_every = 500, .tokens = 500,
                .temperature = 0.8, .windows = 16, .stop = -1};
    if (preset != TIGHT) {
        c.batch = 64, c.eval_every = 100, c.lr = 0.5;
        c.activation = GELU, c.attention_factor = 1.0 / 3;
        c.share_embed = 1, c.share_head = 1;
        c.cap_qk = c.cap_v = c.cap_o = c.cap_in = c.cap_out = c.cap_head = 1.2;
        if (preset == PAPER) return c;
        c.width = 768, c.heads = 6, c.blocks = 12, c.context = 1024, c.vocabulary = 50304;
        c.batch = 512, c.lanes = 2, c.steps = 1335; // 0.7B tokens
        c.eval_windows = 64, c.constraint = NORMALIZE, c.share_head = 8;
        c.cap_qk = c.cap_v = c.cap_o = c.cap_in = c.cap_out = 1, c.cap_head = 8;
    } else {
        c.batch = 16, c.eval_every = 200, c.lr = 0.1, c.lipschitz = 100;
        c.activation = MAXMIN, c.attention_factor = 1;
        c.residual = CONCAT, c.blocks = 2, c.attention_blocks = 1;
        c.heads = 8, c.value_ratio = 2, c.mlp_ratio = 8;
        c.position_bias = 1, c.bias = 1, c.per_head = 1; // free, or nearly, in K
        c.share_embed = 500, c.share_head = 20; // factors on 1/34 of a step
        c.cap_qk = 0.1, c.cap_v = 1, c.cap_o = 1, c.cap_in = 2.5, c.cap_out = 1.5, c.cap_head = 6;
    }
    return c;
}

// small_budget: what tight takes instead for a K below 20, a longer average of gradients and larger
// steps of E; and below 10, attention that depends on where a token stands and not on what it is,
// narrower caps of the MLPs, larger steps of all.
static void small_budget(Config *c) {
    if (c->preset != TIGHT || c->lipschitz == 0 || c->lipschitz >= 20) return;
    c->momentum = 0.98, c->share_embed = 2000;
    if (c->lipschitz >= 10) return;
    c->position_only = 1, c->cap_in = c->lipschitz < 4 ? 1 : 1.5, c->cap_out = 1, c->lr = 0.3;
}

// config_check: what no single option's range can say; status is what to exit with.
static void config_check(const Config *c, int status) {
    const double caps[] = {c->cap_qk, c->cap_v, c->cap_o, c->cap_in, c->cap_out, c->cap_head,
                           c->cap_embed, c->cap_bias};
    for (int i = 0; i < 8; i++)
        if (caps[i] > 0 && caps[i] < 1e-9)
            fail(status, "give more, or 0 for none", "a cap of %g is below 1e-9", caps[i]);
    if (c->width % c->heads)
        fail(status, "choose heads that divide the width", "--heads %d does not divide --width %d",
             c->heads, c->width);
    if (c->width / c->heads % 2)
        fail(status, "rope pairs the two halves of a head", "head width %d / %d = %d is odd",
             c->width, c->heads, c->width / c->heads);
}

// The tensors of a model, named as in the equations, in the order in which they stand in memory.
typedef enum { EMBED, W_Q, W_K, W_V, POSITION, W_O, W_IN, B_IN, W_OUT, W_HEAD, B_OUT, KINDS } Kind;

typedef struct {
    char name[48];
    Kind kind;
    int block, rows, cols; // (O, I); one embedding or one bias vector per row
    int slices;            // H: every attention head's rows are stepped and capped alone; or 1
    double cap;            // largest RMS->RMS norm (rows: RMS norm), 0 = free
    double share;          // u / learning rate: the norm of an update
    size_t offset, size;   // where it stands in weights, momenta and gradients
    Bracket norm, *heads;  // measured: of the whole, and of every head's rows (of q, k and v)
} Tensor;

typedef struct {
    Config config;
    int count;
    Tensor *tensors;           // (L, KINDS); one that the settings do not ask for has size 0
    Bracket *brackets;         // (L, KINDS, H), the memory of their heads
    size_t size;               // of all tensors together
    float *weights, *momentum, *second; // second: only for AdamW, else NULL
    float *angles;             // rope's table, (context, dh/2, 2)
} Model;

static bool is_matrix(Kind kind) { // what the RMS->RMS norm is for; the others are rows
    return kind != EMBED && kind != POSITION && kind != B_IN && kind != B_OUT;
}

// has_heads: whether an attention head's rows have a norm of their own in the bound.
static bool has_heads(Kind kind) { return kind == W_Q || kind == W_K || kind == W_V; }

// tensor: the row of the table for a kind and a block. Those outside of the blocks: E stands in the
// first one, W_head and b_out in the last one.
static Tensor *tensor(const Model *m, Kind kind, int block) {
    int row = kind == W_HEAD || kind == B_OUT ? m->config.blocks - 1 : block;
    return &m->tensors[row * KINDS + (int)kind];
}

// values: a tensor's numbers in the weights, in a momentum or in a gradient; NULL if it has none.
static float *values(const Model *m, float *base, Kind kind, int block) {
    Tensor *t = tensor(m, kind, block);
    return base && t->size ? base + t->offset : NULL;
}

// keep, alpha and s / dh, rounded as the network uses them: the certificate counts the same.
static double keep_of(const Config *c) {
    return c->residual == CONVEX ? (float)(1 - c->alpha) : c->residual == PLAIN;
}
static double alpha_of(const Config *c) { return c->residual == CONVEX ? (float)c->alpha : 1; }
static double attention_alpha_of(const Config *c) {
    return (float)((c->residual == CONVEX ? c->alpha : 1) * c->attention_factor);
}
static double score_scale_of(const Config *c) { // s / dh
    return (float)(c->softmax_scale * c->heads / c->width);
}

// Ours: no q and k, wider values, and columns of W_o and W_out for the stream itself.
static int score_width(const Config *c) { return c->position_only ? 0 : c->width; }
static int value_width(const Config *c) { return c->width * c->value_ratio; }
static int stream_columns(const Config *c) { return c->residual == CONCAT ? c->width : 0; }

// add_tensor: the next one in memory; with no rows, a place in the table that stays empty.
static void add_tensor(Model *m, Kind kind, int block, const char *name, int rows, int cols,
                       double cap, double share) {
    Tensor *t = tensor(m, kind, block);
    int slices = has_heads(kind) && m->config.per_head ? m->config.heads : 1;
    *t = (Tensor){.kind = kind, .block = block, .rows = rows, .cols = cols, .slices = slices,
                  .cap = cap, .share = share, .offset = m->size, .size = (size_t)rows * cols,
                  .heads = m->brackets + (t - m->tensors) * m->config.heads};
    bool outside = kind == EMBED || kind == W_HEAD || kind == B_OUT;
    if (outside) snprintf(t->name, sizeof t->name, "%s", name);
    else snprintf(t->name, sizeof t->name, "blocks.%d.%s", block, name);
    m->size += t->size;
}

// model_plan: the one table of tensors, with the shares of the modular norm (paper): a network has
// a norm, too, made of its weights' norms, and a step of size eta in it is shared out among them
// by "mass": M for all blocks, 1 each for the two ends, E and W_head. So an end gets 1 / (M + 2),
// and the blocks get body = M / (M + 2). Each of their 6 L matrices gets body / (6 L), divided by
// what follows it: the paper's alpha = 1 / (2L), which leaves body / 3; and for q, k and v
// attention's 1/3, too, which stands before W_o: that leaves body. So an update of W_o has norm
// eta body / 3: 0.31 eta at M = 32. (Shares follow no other residual, alpha or factor;
// --share-embed, -head and -bias are ours.) The paper's headline run let them grow with depth
// instead, --share-growth g = 8 times from block to block, up to body / (6 L) for the MLP of the
// last one, and half of that for its attention (dev/headline.md).
static void model_plan(Model *m) {
    const Config *c = &m->config;
    int d = c->width, F = d * c->mlp_ratio, V = c->vocabulary;
    int qk = score_width(c), n = value_width(c), S = stream_columns(c);
    int position_rows = c->position_bias ? c->heads : 0, bias_rows = c->bias ? 1 : 0;
    double end = 1 / (c->mass + 2), body = c->mass / (c->mass + 2);
    m->size = 0, m->count = c->blocks * KINDS;
    m->tensors = allocate((size_t)m->count, sizeof(Tensor));
    m->brackets = allocate((size_t)m->count * (size_t)c->heads, sizeof(Bracket));
    double g = c->share_growth, first = g > 0 ? pow(g, -c->blocks) : 1; // E's, beside W_head's
    add_tensor(m, EMBED, 0, "embedding.weight", V, d, c->cap_embed, end * first * c->share_embed);
    for (int l = 0; l < c->blocks; l++) {
        double mlp = g > 0 ? body / (6 * c->blocks) * pow(g, l + 1 - c->blocks) : body / 3;
        double qkv = g > 0 ? mlp / 2 : body, out = g > 0 ? mlp / 2 : body / 3;
        int here = c->attention_blocks == 0 || l < c->attention_blocks; // else no rows
        add_tensor(m, W_Q, l, "attention.query.weight", here * qk, d, c->cap_qk, qkv);
        add_tensor(m, W_K, l, "attention.key.weight", here * qk, d, c->cap_qk, qkv);
        add_tensor(m, W_V, l, "attention.value.weight", here * n, d, c->cap_v, qkv);
        add_tensor(m, POSITION, l, "attention.position_bias", here * position_rows, c->context, 0,
                   c->share_bias);
        add_tensor(m, W_O, l, "attention.output.weight", here * d, S + n, c->cap_o, out);
        add_tensor(m, W_IN, l, "mlp.in.weight", F, d, c->cap_in, mlp);
        add_tensor(m, B_IN, l, "mlp.in.bias", bias_rows, F, c->cap_bias, c->share_bias);
        add_tensor(m, W_OUT, l, "mlp.out.weight", d, S + F, c->cap_out, mlp);
    }
    add_tensor(m, W_HEAD, 0, "head.weight", V, d, c->cap_head, end * c->share_head);
    add_tensor(m, B_OUT, 0, "head.bias", bias_rows, V, 0, c->share_bias);
}

// model_create: the table and its memory, with zero weights. The settings have passed config_check.
static Model *model_create(const Config *c) {
    Model *m = allocate(1, sizeof *m);
    m->config = *c;
    model_plan(m);
    m->weights = floats(m->size), m->momentum = floats(m->size);
    m->second = c->optimizer == ADAMW ? floats(m->size) : NULL;
    size_t half = (size_t)(c->width / c->heads / 2), n = (size_t)c->context * half;
    m->angles = floats(2 * n); // cos, sin of t 10000^(-i / (dh/2)) at (t, i)
    for (size_t i = 0; i < n; i++) {
        double angle = (double)(i / half) * pow(10000, -(double)(i % half) / (double)half);
        m->angles[2 * i] = (float)cos(angle), m->angles[2 * i + 1] = (float)sin(angle);
    }
    return m;
}

static void model_free(Model *m) {
    free(m->tensors), free(m->brackets), free(m->weights), free(m->momentum), free(m->second);
    free(m->angles), free(m);
}

// orthogonal_init: W (rows, cols) with all singular values at `norm`, an RMS->RMS norm, from random
// numbers in W. Two passes: one would leave the smallest values of a random square matrix behind.
static void orthogonal_init(float *W, int rows, int cols, double norm) {
    Scratch s = scratch_create(rows, cols);
    widen(s.x, W, rows, cols, 1);
    orthogonalize(&s), orthogonalize(&s);
    narrow(W, s.x, rows, cols, norm * sqrt((double)rows / cols));
    scratch_free(&s);
}

// position_init: ours. Head h of block l starts out looking (h + first) B^l tokens back, B = H +
// first: the digits of a distance in base B, so that together the blocks can hand over any of the
// last B^L tokens from the first step on. Beside the stream itself (concat) no head needs its own
// token: first is 1 there, else 0. It costs nothing: A stays a convex combination. A bias of 6
// gives that token e^6 = 403 times the weight of another: most of it, even among 256.
#define POSITION_START 6
static void position_init(const Tensor *t, float *b, int first) {
    double unit = pow(t->rows + first, t->block);
    for (int h = 0; h < t->rows; h++, b += t->cols)
        if ((h + first) * unit < t->cols) b[(size_t)((h + first) * unit)] = POSITION_START;
}

// model_init: W_o, W_out, W_head, b_in and b_out start at zero; the other matrices
// (semi-)orthogonal with norm min(1, cap), rows of E with RMS norm min(1, cap) (paper). With
// --residual concat W_o and W_out are among the others: at zero nothing would pass.
static void model_init(Model *m, Rng *rng) {
    for (Tensor *t = m->tensors; t < m->tensors + m->count; t++) {
        if (t->size == 0) continue;
        float *w = m->weights + t->offset;
        bool concat = m->config.residual == CONCAT, last = t->kind == W_O || t->kind == W_OUT;
        bool drawn = t->kind == EMBED || has_heads(t->kind) || t->kind == W_IN || (concat && last);
        if (t->kind == POSITION) position_init(t, w, concat);
        if (!drawn) continue;
        int rows = t->rows / t->slices;
        double norm = t->cap > 0 ? min(1, t->cap) : 1;
        for (size_t j = 0; j < t->size; j++) w[j] = (float)rng_normal(rng);
        if (is_matrix(t->kind))
            for (int i = 0; i < t->slices; i++, w += (size_t)rows * t->cols)
                orthogonal_init(w, rows, t->cols, norm);
        else
            for (int r = 0; r < rows; r++, w += t->cols) {
                float scale = (float)(norm / rms(w, (size_t)t->cols));
                for (int j = 0; j < t->cols; j++) w[j] *= scale;
            }
    }
}

// LOGIT_ROWS: tokens whose logits are there at one time, so that they cost 51 MB and not 206 MB at
// a context of 1024 and 50304 symbols. A part of a sum over k in matmul is as deep, so dW_head
// adds the same numbers in the same order as in one go: the same bits.
enum { LOGIT_ROWS = KC };

// Workspace: what one sequence needs, forward and backward. One per thread, so memory does not grow
// with the batch and a sequence stays in the cache of the core that works on it.
typedef struct {
    float *x, *mid;     // (T, d) the stream before attention and before the MLP
    float *qkv, *A, *y; // (T, 2 qk + n) after rope, (H, T, T), (T, n)
    float *z;           // (T, F) before the activation
} BlockState;

typedef struct {
    BlockState *blocks;         // L of them
    float *last, *logits;       // (T, d) after the last block, (LOGIT_ROWS, V)
    float *a, *da;              // (T, F) after the activation
    float *dx, *dy, *dqkv, *dA; // (T, d), (T, n), (T, 2 qk + n >= S): also residual's spare, (T, T)
} Workspace;

// workspaces_create: one for every thread that may ask (omp_get_thread_num() indexes them).
static Workspace *workspaces_create(const Config *c, int count) {
    size_t T = (size_t)c->context, Td = T * (size_t)c->width, TF = Td * (size_t)c->mlp_ratio;
    size_t Tn = T * (size_t)value_width(c), row = 2 * T * (size_t)score_width(c) + Tn;
    Workspace *all = allocate((size_t)count, sizeof *all);
    for (Workspace *s = all; s < all + count; s++) {
        s->blocks = allocate((size_t)c->blocks, sizeof(BlockState));
        for (BlockState *b = s->blocks; b < s->blocks + c->blocks; b++) {
            b->x = floats(Td), b->mid = floats(Td), b->y = floats(Tn), b->z = floats(TF);
            b->qkv = floats(row), b->A = floats(T * T * (size_t)c->heads);
        }
        s->last = floats(Td);
        s->logits = floats((size_t)imin(c->context, LOGIT_ROWS) * (size_t)c->vocabulary);
        s->a = floats(TF), s->da = floats(TF), s->dx = floats(Td), s->dy = floats(Tn);
        s->dqkv = floats(row), s->dA = floats(T * T);
    }
    return all;
}

static void workspaces_free(Workspace *all, const Config *c, int count) {
    for (Workspace *s = all; s < all + count; s++) {
        for (BlockState *b = s->blocks; b < s->blocks + c->blocks; b++)
            free(b->x), free(b->mid), free(b->y), free(b->z), free(b->qkv), free(b->A);
        free(s->blocks), free(s->last), free(s->logits), free(s->a), free(s->da);
        free(s->dx), free(s->dy), free(s->dqkv), free(s->dA);
    }
    free(all);
}

// forward: the trunk, from embeddings in s->blocks[0].x to s->last, both (T, d), T <= context.
static void forward(const Model *m, Workspace *s, int T) {
    const Config *c = &m->config;
    int d = c->width, H = c->heads, F = d * c->mlp_ratio, L = c->blocks;
    int qk = score_width(c), n = value_width(c), cols = 2 * qk + n, S = stream_columns(c);
    double keep = keep_of(c), alpha = alpha_of(c), scale = score_scale_of(c);
    float *w = m->weights;
    for (int l = 0; l < L; l++) {
        BlockState *b = &s->blocks[l];
        float *next = l + 1 < L ? s->blocks[l + 1].x : s->last;
        if (tensor(m, W_O, l)->size) { // one product: the weights of q, k and v lie side by side
            linear_forward(b->qkv, b->x, values(m, w, qk ? W_Q : W_V, l), NULL, T, d, cols);
            rope(b->qkv, m->angles, 1, T, cols, qk, H);
            attention_forward(b->y, b->A, b->qkv, values(m, w, POSITION, l), scale, c->context, T,
                              qk, n, H);
            residual_forward(b->mid, b->x, b->y, values(m, w, W_O, l), keep,
                             attention_alpha_of(c), T, S, n, d);
        } else
            memcpy(b->mid, b->x, (size_t)T * d * sizeof(float));
        linear_forward(b->z, b->mid, values(m, w, W_IN, l), values(m, w, B_IN, l), T, d, F);
        activation_forward(s->a, b->z, c->activation, T, F);
        residual_forward(next, b->mid, s->a, values(m, w, W_OUT, l), keep, alpha, T, S, F, d);
    }
}

// backward: s->dx (T, d), the gradient of s->last, becomes that of the embeddings, and g (laid out
// like the weights) is added to, unless it is NULL.
static void backward(const Model *m, Workspace *s, float *g, int T) {
    const Config *c = &m->config;
    int d = c->width, H = c->heads, F = d * c->mlp_ratio, L = c->blocks;
    int qk = score_width(c), n = value_width(c), cols = 2 * qk + n, S = stream_columns(c);
    double keep = keep_of(c), alpha = alpha_of(c), scale = score_scale_of(c);
    float *w = m->weights;
    for (int l = L - 1; l >= 0; l--) {
        BlockState *b = &s->blocks[l];
        activation_forward(s->a, b->z, c->activation, T, F); // cheaper than keeping it
        residual_backward(s->dx, s->da, values(m, g, W_OUT, l), s->dqkv, b->mid, s->a,
                          values(m, w, W_OUT, l), keep, alpha, T, S, F, d);
        activation_backward(s->da, b->z, c->activation, T, F);
        linear_backward(s->dx, values(m, g, W_IN, l), values(m, g, B_IN, l), s->da, b->mid,
                        values(m, w, W_IN, l), T, d, F);
        if (!tensor(m, W_O, l)->size) continue; // no attention here
        residual_backward(s->dx, s->dy, values(m, g, W_O, l), s->dqkv, b->x, b->y,
                          values(m, w, W_O, l), keep, attention_alpha_of(c), T, S, n, d);
        attention_backward(s->dqkv, s->dA, values(m, g, POSITION, l), s->dy, b->A, b->qkv, scale,
                           c->context, T, qk, n, H);
        rope(s->dqkv, m->angles, -1, T, cols, qk, H);
        linear_backward(s->dx, values(m, g, qk ? W_Q : W_V, l), NULL, s->dqkv, b->x,
                        values(m, w, qk ? W_Q : W_V, l), T, d, cols);
    }
}

// logits_forward: s->logits (rows, V) of the tokens first, first + 1, ..., at most LOGIT_ROWS of
// them.
static void logits_forward(const Model *m, Workspace *s, int first, int rows) {
    int d = m->config.width, V = m->config.vocabulary;
    linear_forward(s->logits, s->last + (size_t)first * d, values(m, m->weights, W_HEAD, 0),
                   values(m, m->weights, B_OUT, 0), rows, d, V);
}

// logits_backward: s->logits holds dlogits; the rows of s->dx are set, g is added to unless NULL.
static void logits_backward(const Model *m, Workspace *s, float *g, int first, int rows) {
    int d = m->config.width, V = m->config.vocabulary;
    float *dx = s->dx + (size_t)first * d;
    memset(dx, 0, (size_t)rows * d * sizeof(float));
    linear_backward(dx, values(m, g, W_HEAD, 0), values(m, g, B_OUT, 0), s->logits,
                    s->last + (size_t)first * d, values(m, m->weights, W_HEAD, 0), rows, d, V);
}

// forward_tokens: from tokens (T) to s->last.
static void forward_tokens(const Model *m, Workspace *s, const uint16_t *tokens, int T) {
    embedding_forward(s->blocks[0].x, values(m, m->weights, EMBED, 0), tokens, T, m->config.width);
    forward(m, s, T);
}

// sequence_loss: summed loss of one sequence of T tokens and their targets; with a gradient g, also
// backward, for the mean over n tokens, and the loss has --margin in it: to be right is not enough.
static double sequence_loss(const Model *m, Workspace *s, const uint16_t *tokens,
                            const uint16_t *targets, int T, float *g, double n, int *correct) {
    int V = m->config.vocabulary;
    double loss = 0;
    forward_tokens(m, s, tokens, T);
    for (int first = 0; first < T; first += LOGIT_ROWS) {
        int rows = imin(LOGIT_ROWS, T - first);
        logits_forward(m, s, first, rows);
        for (int t = 0; g && t < rows; t++)
            s->logits[(size_t)t * V + targets[first + t]] -= (float)m->config.margin;
        loss += cross_entropy_forward(s->logits, targets + first, correct, rows, V);
        if (!g) continue;
        cross_entropy_backward(s->logits, targets + first, n, rows, V);
        logits_backward(m, s, g, first, rows);
    }
    if (!g) return loss;
    backward(m, s, g, T);
    embedding_backward(values(m, g, EMBED, 0), s->dx, tokens, T, m->config.width);
    return loss;
}

// Many sequences at once. Parallelism is one idea: a batch is split in a fixed number of lanes,
// each with a gradient of its own; threads take lanes, lanes are summed in order. So the same seed
// gives the same bits for any number of threads, and no layer knows of it. Evaluation goes parallel
// over windows, the optimizer and the norms over slices of the weights.

typedef struct { const uint16_t *tokens; size_t count; } Span; // of a text

// lanes_of: how many there are: a lane has one window at least.
static int lanes_of(const Config *c) { return imin(c->lanes, c->batch); }

// sum_lanes: the first lane becomes the sum of all, added in order.     lanes (count, size)
static void sum_lanes(float *lanes, int count, size_t size) {
    #pragma omp parallel for schedule(static)
    for (size_t chunk = 0; chunk < size; chunk += 4096)
        for (int lane = 1; lane < count; lane++)
            for (size_t i = chunk; i < chunk + 4096 && i < size; i++)
                lanes[i] += lanes[(size_t)lane * size + i];
}

// batch_gradient: mean loss over windows (batch) of T + 1 tokens; the first lane gets its gradient.
//   lanes (lanes_of(c), m->size); spaces, one for every thread
static double batch_gradient(const Model *m, Workspace *spaces, const uint16_t *const *windows,
                             float *lanes) {
    const Config *c = &m->config;
    int count = lanes_of(c);
    double *losses = doubles((size_t)count), loss = 0, n = (double)c->batch * c->context;
    #pragma omp parallel for schedule(dynamic, 1)
    for (int lane = 0; lane < count; lane++) {
        float *g = memset(lanes + (size_t)lane * m->size, 0, m->size * sizeof(float));
        int correct = 0;
        for (int i = lane; i < c->batch; i += count)
            losses[lane] += sequence_loss(m, &spaces[omp_get_thread_num()], windows[i],
                                          windows[i] + 1, c->context, g, n, &correct);
    }
    sum_lanes(lanes, count, m->size);
    for (int lane = 0; lane < count; lane++) loss += losses[lane];
    free(losses);
    return loss / n;
}

// Two protocols of validation, never to be compared: FULL_SPLIT is the whole split in consecutive
// windows, every target once; PAPER_SLICE is what the paper's code evaluates: 1280 overlapping
// windows, one token apart, at its beginning.
typedef enum { FULL_SPLIT, PAPER_SLICE } Protocol;

static int window_count(Span split, Protocol protocol, int context) {
    size_t T = (size_t)context;
    if (protocol == FULL_SPLIT) return (int)((split.count - 2 + T) / T);
    return split.count <= T ? 1 : split.count - T < 1280 ? (int)(split.count - T) : 1280;
}

// window_of: number i of `windows` that are evenly spread over all: T tokens, the context or what
// is left, and one more, the last target.
static Span window_of(Span split, Protocol protocol, int context, int i, int windows) {
    long long all = window_count(split, protocol, context);
    size_t T = (size_t)context, w = (size_t)(all * i / windows);
    size_t start = w * (protocol == FULL_SPLIT ? T : 1), left = split.count - 1 - start;
    return (Span){split.tokens + start, left < T ? left : T};
}

typedef struct {
    double loss, accuracy;  // means over positions
    int correct, positions;
    double largest;         // entry of the residual stream
} Score;

// evaluate: means over the windows of a split, all or `most` of them, evenly spread (most 0: all).
// seen (2L + 1) gets the largest norm of a token before every layer and after the last.
static Score evaluate(const Model *m, Workspace *spaces, Span split, Protocol protocol, int most,
                      double *seen) {
    const Config *c = &m->config;
    int L = c->blocks, d = c->width, all = window_count(split, protocol, c->context);
    int windows = most ? imin(most, all) : all, correct = 0, positions = 0;
    double *losses = doubles((size_t)windows), largest = 0, loss = 0;
    memset(seen, 0, (2 * (size_t)L + 1) * sizeof(double));
    #pragma omp parallel for schedule(dynamic, 1) reduction(+ : correct, positions)
    for (int w = 0; w < windows; w++) {
        if (interrupted) continue;
        Workspace *s = &spaces[omp_get_thread_num()];
        Span window = window_of(split, protocol, c->context, w, windows);
        int T = (int)window.count;
        losses[w] = sequence_loss(m, s, window.tokens, window.tokens + 1, T, NULL, 1, &correct);
        positions += T;
        for (int i = 0; i <= 2 * L; i++) {
            BlockState *b = &s->blocks[i / 2];
            const float *x = i == 2 * L ? s->last : i % 2 ? b->mid : b->x;
            size_t n = (size_t)T * d;
            double entry = (double)max(largest_of(x, n, 1), largest_of(x, n, -1));
            double norm = largest_row(x, T, d);
            #pragma omp critical
            largest = max(largest, entry), seen[i] = max(seen[i], norm);
        }
        if (w % 16 == 0 && isatty(2))
            fprintf(stderr, "%svalidation: %d of %d windows", fresh_line(), w, windows);
    }
    fputs(fresh_line(), stderr);
    for (int w = 0; w < windows; w++) loss += losses[w];
    free(losses);
    return (Score){loss / positions, (double)correct / positions, correct, positions, largest};
}

// Slice: what an update, a cap or a norm is for: a whole tensor, or the rows of W_q, W_k or W_v
// that belong to one attention head.
typedef struct {
    Tensor *t;
    int head, rows;  // head -1: the whole tensor
    size_t offset;   // of its first number in the weights
    double cost;     // how long it will take, relatively
} Slice;

// has_own_cap: whether the rows of a head, or for head -1 the whole, are updated and capped as one.
static bool has_own_cap(const Tensor *t, int head) { return (t->slices > 1) == (head >= 0); }

// by_cost: for qsort, the most expensive first.
static int by_cost(const void *a, const void *b) {
    double x = ((const Slice *)a)->cost, y = ((const Slice *)b)->cost;
    return (x < y) - (x > y);
}

// for_slices: work(m, slice, context) for every slice of the model, wholes and heads, in parallel,
// the most expensive first, so that all threads end together.
static void for_slices(const Model *m, void (*work)(const Model *, const Slice *, void *),
                       void *context) {
    int H = m->config.heads, count = 0;
    Slice *slices = allocate((size_t)m->count * (size_t)(H + 1), sizeof *slices);
    for (Tensor *t = m->tensors; t < m->tensors + m->count; t++)
        for (int head = -1; head < (has_heads(t->kind) ? H : 0); head++) {
            if (t->size == 0) continue;
            int rows = head < 0 ? t->rows : t->rows / H;
            double n = is_matrix(t->kind) ? imin(rows, t->cols) : 1;
            size_t first = head < 0 ? 0 : (size_t)head * (size_t)rows * (size_t)t->cols;
            slices[count++] = (Slice){t, head, rows, t->offset + first, n * rows * t->cols};
        }
    qsort(slices, (size_t)count, sizeof *slices, by_cost);
    #pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < count; i++) work(m, &slices[i], context);
    free(slices);
}

// ---------------------------------------------------------------------------------------------
// 6. Muon: momentum, made orthogonal (and AdamW, to compare). The update of a matrix is the
// direction that gains most among all of the same RMS->RMS norm: singular values are replaced by 1,
// so the size of a step does not depend on the gradient's: u = eta * share (model_plan), whatever
// happens. The caps of section 7 live on that.

// muon_matrix: s->x becomes X (1 - lambda u) - u orth(m): the step of W (rows, cols) down its
// momentum m, with weight decay, before any cap. (1 - lambda u is never taken below 0.)
static void muon_matrix(Scratch *s, const float *W, const float *m, int rows, int cols, double u,
                        double lambda) {
    size_t nk = (size_t)rows * cols;
    widen(s->x, m, rows, cols, 1);
    orthogonalize(s);
    widen(s->y, W, rows, cols, max(0, 1 - lambda * u) / sqrt((double)rows / cols));
    for (size_t i = 0; i < nk; i++) s->x[i] = s->y[i] - (float)u * s->x[i];
}

// muon_rows: for embeddings and biases, whose norm is the largest RMS norm of a row. A row of E
// moves by u m_row / max(1/16, |m_row|) (paper): by u, or by less, in proportion, where its
// momentum is below 1/16: a rare symbol's does not take whole steps from next to nothing. Biases,
// ours, move every entry by u against the sign of its momentum: a step of RMS norm u whatever the
// gradient's size. (By m_row / |m_row| instead, the one distance with the largest gradient would
// take the whole step of a position bias.)
static void muon_rows(const Tensor *t, float *w, const float *m, double u) {
    for (int r = 0; r < t->rows; r++, w += t->cols, m += t->cols) {
        float step = (float)(u / max(1.0 / 16, rms(m, (size_t)t->cols)));
        for (int i = 0; i < t->cols; i++)
            w[i] -= t->kind == EMBED ? step * m[i] : (float)u * (float)((m[i] > 0) - (m[i] < 0));
    }
}

// adamw: v is the running mean of g^2; every number decays by lambda eta, then moves by eta m /
// sqrt(v) (paper: no bias correction, all weights alike). Only afterwards is the norm of such a
// step known: the caps must measure it.
static void adamw(const Config *c, float *w, const float *m, float *v, const float *g, size_t n,
                  double eta) {
    float decay = (float)max(0, 1 - c->weight_decay * eta);
    for (size_t i = 0; i < n; i++) {
        v[i] = (float)c->beta2 * v[i] + (float)(1 - c->beta2) * g[i] * g[i];
        w[i] = decay * w[i] - (float)(eta * (double)m[i] / (sqrt((double)v[i]) + 1e-8));
    }
}

// ---------------------------------------------------------------------------------------------
// 7. Caps, and a whole step: after it each weight is put back into its ball, |W| <= w. The paper's
// best way is the soft cap, a polynomial without any measuring: a step adds at most u, so the norm
// is at most k = w (1 - lambda u) + u, and the "coupling" chooses the weakest polynomial that
// takes k back to w. As the learning rate falls, so does its strength. The other constraints
// follow.

// soft_cap_strength: the coupling. x <- x - p x^3, then x <- x + p x^3, takes x = k down to w for
// the smallest strength p >= 0 with (paper)
//   k - 3 p^2 k^5 + 3 p^3 k^7 - p^4 k^9 = w,  with t = p k^2:  t^4 - 3 t^3 + 3 t^2 = (k - w) / k.
// Bisection on t in [0, 1/3]: x - p x^3 rises as long as 3 p x^2 <= 1, so up to t = 1/3 both maps
// rise on [0, k] and no smaller value ends above w; and t^4 - 3 t^3 + 3 t^2 rises, to 0.2346.
static double soft_cap_strength(double k, double w) {
    double low = 0, high = 1.0 / 3;
    for (int i = 0; i < 60; i++) {
        double t = (low + high) / 2;
        if (t * t * (t * t - 3 * t + 3) < (k - w) / k) low = t;
        else high = t;
    }
    return high / (k * k);
}

// soft_cap: s->x, whose singular values are at most `top`, gets all of them below the cap; those
// far below hardly move (the first order cancels). One application takes off at most 0.2346, the
// coupling's reach; a larger excess is removed in several, each by 23 % (ours).
static void soft_cap(Scratch *s, double top, double cap) {
    top *= 1 + ROUNDING, cap *= 1 - ROUNDING;
    while (top > cap) {
        double goal = max(cap, 0.77 * top), p = soft_cap_strength(top, goal);
        odd_polynomial(s, 1, -p, 0);
        odd_polynomial(s, 1, p, 0);
        top = goal;
    }
}

// matrix_sign: X = U S V^T becomes U V^T. Two rounds of orthogonalize, for values far below the
// largest, and two of x <- (3 x - x^3) / 2, which squares what is left of the error.
static void matrix_sign(Scratch *s) {
    for (int i = 0; i < 2; i++) orthogonalize(s);
    for (int i = 0; i < 2; i++) odd_polynomial(s, 1.5, -0.5, 0);
}

// hard_cap: singular values <- min(x, w), by min(w, x) = (w + x - |w - x|) / 2 and matrix products
// only (ours): with the sign O of X, and S that of the symmetric w I - O X^T,
//   X <- (w O + X - S (w O - X)) / 2.
// What float left above the cap is scaled back. (The paper's code has a fixed polynomial, whose
// slope 0.951 at 0 shrinks all values at every step.)
static void hard_cap(Scratch *s, double cap) {
    int n = s->n, k = s->k;
    Scratch o = scratch_create(n, k), sign = scratch_create(n, n);
    memcpy(o.x, s->x, (size_t)n * k * sizeof(float));
    matrix_sign(&o);
    matmul(mat(sign.x, n, n), mat(o.x, n, k), transposed(mat(s->x, n, k)), -1, false, FULL);
    for (int i = 0; i < n; i++) sign.x[(size_t)i * (n + 1)] += (float)cap;
    matrix_sign(&sign);
    for (size_t i = 0; i < (size_t)n * k; i++) {
        float half = (float)cap * o.x[i] / 2, x_half = s->x[i] / 2;
        o.x[i] = half - x_half, s->x[i] = half + x_half;
    }
    matmul(mat(s->x, n, k), mat(sign.x, n, n), mat(o.x, n, k), -1, true, FULL);
    Bracket norm = spectral_norm(s->x, n, k, NULL);
    bool within = norm.lower <= cap * (1 + ROUNDING) && norm.upper <= cap * bracket_width(n);
    if (!within) scale_by(s->x, (size_t)n * k, cap / norm.upper);
    scratch_free(&o), scratch_free(&sign);
}

// add_top: X += factor sigma_1 u_1 v_1^T, given top = u_1 (n), as sigma_1 v_1 = X^T u_1.
static void add_top(Scratch *s, const float *top, double factor) {
    for (int j = 0; j < s->k; j++) {
        double dot = 0;
        for (int i = 0; i < s->n; i++) dot += (double)top[i] * (double)s->x[(size_t)i * s->k + j];
        for (int i = 0; i < s->n; i++)
            s->x[(size_t)i * s->k + j] += (float)(factor * dot * (double)top[i]);
    }
}

// constrain: s->x after a step, back under its cap. `most` is the largest its norm can be; infinity
// where only measuring can tell. Stiefel makes all singular values 0.9956 to 0.9993 of w (see
// orthogonalize). Normalizing needs a bound from above: with power iteration, which converges from
// below, the paper's norms pass their caps by a tenth. Hammer sets the top singular value to w
// (made for AdamW, whose steps are of low rank), spectral decay takes a fraction of it, whatever w
// is: both leave the second one alone, and guarantee nothing.
static void constrain(Scratch *s, const Config *c, double most, double cap) {
    size_t nk = (size_t)s->n * s->k;
    float *top = s->gram2; // singular vector
    if (c->constraint == STIEFEL) {
        orthogonalize(s);
        scale_by(s->x, nk, cap);
    } else if (c->constraint == SOFT && most < INFINITY) {
        soft_cap(s, most, cap);
    } else {
        Bracket norm = spectral_norm(s->x, s->n, s->k, top);
        if (!(norm.lower > 0 && norm.upper < INFINITY)) return; // zero; or check_finite will say it
        if (c->constraint == SOFT) soft_cap(s, norm.upper, cap);
        if (c->constraint == HARD && norm.upper > cap) hard_cap(s, cap);
        if (c->constraint == NORMALIZE && norm.upper > cap) scale_by(s->x, nk, cap / norm.upper);
        if (c->constraint == HAMMER) add_top(s, top, cap / norm.lower - 1);
        if (c->constraint == DECAY) add_top(s, top, -c->spectral_decay);
    }
}

// holds_caps: whether the constraint leaves no norm above its cap.
static bool holds_caps(const Config *c) {
    return c->constraint != HAMMER && c->constraint != DECAY;
}

// cap_rows: a row beyond its cap is scaled back onto it.
static void cap_rows(const Tensor *t, float *w) {
    if (t->cap == 0) return;
    for (int r = 0; r < t->rows; r++, w += t->cols) {
        double norm = rms(w, (size_t)t->cols);
        if (!(norm > t->cap)) continue;
        for (int i = 0; i < t->cols; i++) w[i] *= (float)(t->cap / norm);
    }
}

// step_matrix: one step for one matrix W (rows, cols) with momentum m: Muon's update of norm u, or,
// with AdamW, whose update is done already, none; then the cap.
static void step_matrix(const Config *c, float *W, const float *m, int rows, int cols, double u,
                        double cap) {
    bool muon = c->optimizer == MUON, constrained = cap > 0 || c->constraint == DECAY;
    if (!muon && !constrained) return;
    double unit = sqrt((double)rows / cols), lambda = c->weight_decay;
    Scratch s = scratch_create(rows, cols);
    if (muon) muon_matrix(&s, W, m, rows, cols, u, lambda);
    else widen(s.x, W, rows, cols, 1 / unit);
    double most = muon ? cap * max(0, 1 - lambda * u) + u : INFINITY;
    if (constrained) constrain(&s, c, most, cap);
    narrow(W, s.x, rows, cols, unit);
    scratch_free(&s);
}

typedef struct { const float *gradient; double eta; } Step; // (m->size); learning rate

// step_slice: momentum, update and cap of one slice, if it has a cap of its own.
static void step_slice(const Model *m, const Slice *slice, void *context) {
    if (!has_own_cap(slice->t, slice->head)) return;
    const Step *step = context;
    const Config *c = &m->config;
    const Tensor *t = slice->t;
    size_t n = (size_t)slice->rows * (size_t)t->cols;
    float *w = m->weights + slice->offset, *momentum = m->momentum + slice->offset;
    const float *g = step->gradient + slice->offset;
    double u = step->eta * t->share;
    for (size_t i = 0; i < n; i++)
        momentum[i] = (float)c->momentum * momentum[i] + (float)(1 - c->momentum) * g[i];
    if (c->optimizer == ADAMW)
        adamw(c, w, momentum, m->second + slice->offset, g, n, step->eta);
    else if (!is_matrix(t->kind)) muon_rows(t, w, momentum, u);
    if (is_matrix(t->kind)) step_matrix(c, w, momentum, slice->rows, t->cols, u, t->cap);
    else cap_rows(t, w);
}

// optimizer_step: the momentum is a running mean of gradients (no Nesterov, no bias correction);
// then every slice with a cap of its own is updated and capped. eta is the step's learning rate.
static void optimizer_step(Model *m, const float *gradient, double eta) {
    Step step = {gradient, eta};
    for_slices(m, step_slice, &step);
}

// check_finite: stop at the first NaN or infinity; the last checkpoint stays as it was.
static void check_finite(const Model *m, const float *numbers, const char *what, int step) {
    for (Tensor *t = m->tensors; t < m->tensors + m->count; t++)
        for (size_t i = 0; i < t->size; i++)
            if (!isfinite(numbers[t->offset + i]))
                die("lower --lr or set caps; a checkpoint written before stays as it was",
                    "step %d: the %s of %s is not finite", step, what, t->name);
}

// draw_window: where a window of T + 1 tokens begins, all equally likely, in one of `count` texts,
// each longer than T: none crosses two.
static const uint16_t *draw_window(const Span *texts, int count, int T, Rng *rng) {
    size_t all = 0;
    for (int i = 0; i < count; i++) all += texts[i].count - (size_t)T;
    size_t start = rng_below(rng, all);
    for (; start >= texts->count - (size_t)T; texts++) start -= texts->count - (size_t)T;
    return texts->tokens + start;
}

// train_step: draw windows of texts, gradient, update; returns the mean loss. Steps count from 0,
// and the learning rate falls linearly towards 0 (paper).
static double train_step(Model *m, Workspace *spaces, const Span *texts, int count, Rng *rng,
                         int step, float *lanes) {
    const Config *c = &m->config;
    const uint16_t **windows = allocate((size_t)c->batch, sizeof *windows);
    for (int i = 0; i < c->batch; i++) windows[i] = draw_window(texts, count, c->context, rng);
    double loss = batch_gradient(m, spaces, windows, lanes);
    free(windows);
    check_finite(m, lanes, "gradient", step + 1);
    optimizer_step(m, lanes, c->lr * (1 - (double)step / c->steps));
    check_finite(m, m->weights, "weight", step + 1);
    if (m->second) check_finite(m, m->second, "mean square", step + 1);
    return loss;
}

// ---------------------------------------------------------------------------------------------
// 8. The certificate: a bound that is *sound*, a theorem about the network with these weights (in
// exact arithmetic: float adds about 1e-6 of the logits' size) and not an estimate. Domain:
// embeddings x in R^(T x d) with |x| <= R0 (the largest row of E, by construction at most its
// cap), a convex set; f(x) the logits; both in max-over-tokens RMS norm. Then |f(x) - f(y)| <= K
// |x - y|, with K composed from upper bounds of spectral norms.

typedef struct { double activation, log10_sound, log10_paper; } Layer; // after each layer

typedef struct {
    Layer layers[2 * MOST_BLOCKS];   // 2L of them: attention, MLP, attention, ...
    double radius;                   // R0: the domain is |x| <= R0
    double log10_trunk;              // sound, from embeddings to the last block's output
    double log10_sound, log10_paper; // from embeddings to logits
} Certificate;

// norm: upper end of the norm of a whole tensor.
static double norm(const Model *m, Kind kind, int block) {
    return tensor(m, kind, block)->norm.upper;
}

// measure_slice: the RMS->RMS norm of a matrix, or of an attention head's rows of it; of embeddings
// and biases, the largest row's RMS norm.
static void measure_slice(const Model *m, const Slice *slice, void *unused) {
    Tensor *t = slice->t;
    const float *w = m->weights + slice->offset;
    double unit = sqrt((double)t->cols / slice->rows), error = (t->cols + 8) * EPSILON;
    Bracket b;
    (void)unused;
    if (is_matrix(t->kind)) {
        b = spectral_norm(w, slice->rows, t->cols, NULL);
        b.lower *= unit, b.upper *= unit;
    } else {
        double largest = largest_row(w, slice->rows, t->cols); // a sum of squares and its root
        b = (Bracket){largest * (1 - error), largest * (1 + error)};
    }
    if (slice->head < 0) t->norm = b;
    else t->heads[slice->head] = b;
}

// What compose adds up. Each inequality is proved in dev/certificate.md under its number. (There F
// includes W_o or W_out; slope, shrink and factor are g, r and c; and concat is (6').)
//
//   (1) |W x| <= |W| |x|, |W| = sigma_max(W) sqrt(I/O); a head's rows of W_q are a (dh, d) matrix
//       of their own: |W^h| = sigma_max(W^h) sqrt(d/dh). Of the whole only sqrt(H) |W| bounds it.
//   (2) A convex combination of tokens is no larger than the largest: |A v| <= |v|.
//   (3) |score| <= beta_h = s |W_q^h||W_k^h| a^2 for |x| <= a, as <x, y>/dh <= |x||y| (rope
//       rotates: no norm changes).
//   (4) d(A v) = A dv + dA v, and dA v = E_A[(ds - E ds)(v - E v)] is at most std(ds) std(v) <=
//       max|ds| max|v|: no factor 2 for the softmax. |ds_ij| <= s(|dq||k| + |q||dk|), so a head is
//       F_h = |W_v^h| (1 + 2 beta_h)-Lipschitz.
//   (5) |concat_h y_h|^2 = mean_h |y_h|^2: heads enter as a root mean square.
//   (6) keep x + alpha W F(x) is at most keep + alpha |W| Lip(F), and as large as keep a + alpha
//       |W||F|. W [x; alpha F(x)], F of I numbers: |W| sqrt((d p^2 + I q^2) / (d + I)) with p,
//       q = 1, alpha Lip(F), or a, alpha |F|.
//   (7) The MLP: Lip(F) = slope |W_in|; |F| <= shrink (|W_in| a + |b_in|): biases cost nothing in
//       K, but they enlarge a, and with it the scores of later blocks.
//   (8) Constants multiply: K = product over the layers, each with the a that arrives there.

// score_bound: (3), beta_h for inputs of norm up to a.
static double score_bound(const Model *m, int block, int head, double a) {
    const Config *c = &m->config;
    return score_scale_of(c) * c->width / c->heads * tensor(m, W_Q, block)->heads[head].upper *
           tensor(m, W_K, block)->heads[head].upper * a * a;
}

// residual_bound: (6) for W = W_o or W_out, from the constants of x and of F, or from their norms.
static double residual_bound(const Model *m, Kind kind, int block, double x, double F) {
    const Config *c = &m->config;
    const Tensor *t = tensor(m, kind, block);
    double W = t->norm.upper, alpha = kind == W_O ? attention_alpha_of(c) : alpha_of(c);
    int d = stream_columns(c), I = t->cols - d;
    if (t->size == 0) return x; // a block without attention
    if (d) return W * sqrt((d * square(x) + I * square(alpha * F)) / t->cols);
    return keep_of(c) * x + alpha * W * F;
}

// compose: the sound bound of the table's norms, layer by layer, as log10 (K may pass 10^308). A
// layer takes fewer than H + 64 roundings, relative, and inherits those of `a` from all before it:
// COMPOSE_ERROR covers them, and those of the logs and their sums, which are at most `most`.
#define COMPOSE_ERROR(layers, heads, most) \
    (EPSILON * ((heads) + 64.0) * square((layers) + 2.0) * (1 + (most)))
static void compose(const Model *m, double radius, Certificate *out) {
    const Config *c = &m->config;
    int H = c->heads;
    double slope = c->activation == GELU ? GELU_SLOPE / GELU_DIVISOR : 1; // of phi
    double shrink = c->activation == GELU ? 1 / GELU_DIVISOR : 1;         // |phi(z)| <= shrink |z|
    double a = radius, log_K = 0, most = 0;
    for (int l = 0; l < c->blocks; l++) {
        double in = norm(m, W_IN, l), b_in = c->bias ? norm(m, B_IN, l) : 0, F2 = 0, v2 = 0;
        for (int h = 0; h < H; h++) {
            double v = tensor(m, W_V, l)->heads[h].upper;
            F2 += square(v * (1 + 2 * score_bound(m, l, h, a))) / H; // (4) (5)
            v2 += square(v) / H;                                          // (2) (5)
        }
        log_K += log10(residual_bound(m, W_O, l, 1, sqrt(F2))); // (6)
        a = residual_bound(m, W_O, l, a, sqrt(v2) * a);
        out->layers[2 * l].activation = a, out->layers[2 * l].log10_sound = log_K;
        most = max(most, fabs(log_K));
        log_K += log10(residual_bound(m, W_OUT, l, 1, slope * in)); // (6) (7)
        a = residual_bound(m, W_OUT, l, a, shrink * (in * a + b_in));
        out->layers[2 * l + 1].activation = a, out->layers[2 * l + 1].log10_sound = log_K;
        most = max(most, fabs(log_K));
    }
    if (isnan(log_K)) log_K = INFINITY; // 0 * infinity: nothing is claimed
    if (isfinite(log_K)) log_K += COMPOSE_ERROR(2 * c->blocks, H, most);
    double all = log_K + log10(norm(m, W_HEAD, 0));
    out->radius = radius, out->log10_trunk = log_K, out->log10_sound = isnan(all) ? INFINITY : all;
}

// paper_bound: the paper's accounting, for comparison. It uses whole matrices in (3), divides the
// MLP's constant by 1.1289 although gelu/1.1289 already has slope 1, and lets s scale the value
// path: it can be exceeded (dev/certificate.md, section 9, has a network).
static void paper_bound(const Model *m, Certificate *out) {
    const Config *c = &m->config;
    double shrink = c->activation == GELU ? 1 / GELU_DIVISOR : 1;
    double a = 1, log_K = log10(norm(m, EMBED, 0));
    for (int l = 0; l < c->blocks; l++) {
        double q = norm(m, W_Q, l), k = norm(m, W_K, l), v = norm(m, W_V, l);
        double mlp = norm(m, W_IN, l) * shrink, head = v * (1 + 2 * a * a * q * k);
        log_K += log10(residual_bound(m, W_O, l, 1, head * c->softmax_scale));
        a = residual_bound(m, W_O, l, a, v * a);
        out->layers[2 * l].log10_paper = log_K;
        log_K += log10(residual_bound(m, W_OUT, l, 1, mlp));
        a = residual_bound(m, W_OUT, l, a, mlp * a);
        out->layers[2 * l + 1].log10_paper = log_K;
    }
    out->log10_paper = log_K + log10(norm(m, W_HEAD, 0));
}

// certify: the certificate of the weights as they are, and the paper's bound.
static void certify(const Model *m, Certificate *out) {
    for_slices(m, measure_slice, NULL);
    compose(m, norm(m, EMBED, 0), out);
    paper_bound(m, out);
}

static double rounded_up(double x, double parts) { return ceil(x * parts) / parts; }

// show_bound: a bound from its log10, to so many digits, also when no double is as large or small;
// rounded up, in the last digit.
static const char *show_bound(double log10_bound, int digits) {
    static char texts[4][32];
    static int next;
    char *text = texts[next++ % 4];
    double bound = pow(10, min(log10_bound, 300)), last = pow(10, floor(log10_bound) + 1 - digits);
    snprintf(text, sizeof texts[0], "%.*g", digits, bound);
    if (strtod(text, NULL) < bound) snprintf(text, sizeof texts[0], "%.*g", digits, bound + last);
    if (!(fabs(log10_bound) < 300) && log10_bound != -INFINITY)
        snprintf(text, sizeof texts[0], "10^%.4f", rounded_up(log10_bound, 1e4));
    return text;
}

// print_norms: every weight's norm from both sides and its cap; "-": it has none of its own.
static void print_norms(const Model *m) {
    printf("\nweight\tlower\tupper\tcap\n");
    for (const Tensor *t = m->tensors; t < m->tensors + m->count; t++) {
        int heads = has_heads(t->kind) ? m->config.heads : 0;
        if (t->size == 0) continue;
        for (int head = -1; head < heads; head++) {
            char slice[32] = "", cap[32] = "-";
            Bracket b = head < 0 ? t->norm : t->heads[head];
            if (head >= 0) snprintf(slice, sizeof slice, "[head %d]", head);
            if (t->cap > 0 && has_own_cap(t, head)) snprintf(cap, sizeof cap, "%g", t->cap);
            printf("%s%s\t%.6g\t%.6g\t%s\n", t->name, slice, b.lower, b.upper, cap);
        }
    }
}

// print_layers: what each layer adds; seen (2L + 1), or NULL, has the largest norms on data.
static void print_layers(const Model *m, const Certificate *k, const double *seen) {
    Layer row = {k->radius, 0, log10(norm(m, EMBED, 0))};
    printf("\nlayer\tactivation_bound\tlargest_seen\tcertificate\tpaper_bound\tscore_bounds\n");
    for (int i = -1; i < 2 * m->config.blocks; i++) {
        double a = row.activation;
        bool attention = i >= 0 && i % 2 == 0;
        char name[64] = "embedding", largest[32] = "-";
        if (i >= 0) snprintf(name, sizeof name, "blocks.%d.%s", i / 2, i % 2 ? "mlp" : "attention");
        if (attention && !tensor(m, W_O, i / 2)->size) continue;
        if (i >= 0) row = k->layers[i];
        if (seen) snprintf(largest, sizeof largest, "%.6g", seen[i + 1]);
        printf("%s\t%.6g\t%s\t%s\t%s\t", name, row.activation, largest,
               show_bound(row.log10_sound, 6), show_bound(row.log10_paper, 6));
        if (attention)
            for (int h = 0; h < m->config.heads; h++) printf("%.4g ", score_bound(m, i / 2, h, a));
        printf(attention ? "\n" : "-\n");
    }
    printf("head\t-\t-\t%s\t%s\t-\n", show_bound(k->log10_sound, 6),
           show_bound(k->log10_paper, 6));
}

// is_constrained: whether training enforces what the certificate states. If not, the numbers are a
// measurement of these weights (still sound), not a guarantee given by the settings.
static bool is_constrained(const Config *c) {
    return (c->position_only || c->cap_qk > 0) && c->cap_v > 0 && c->cap_o > 0 && c->cap_in > 0 &&
           c->cap_out > 0 && c->cap_head > 0 && c->cap_embed > 0 && (!c->bias || c->cap_bias > 0) &&
           holds_caps(c);
}

// norm_over_cap: the largest ratio of all slices with a cap of their own, as measured.
static double norm_over_cap(const Model *m) {
    double largest = 0;
    for (const Tensor *t = m->tensors; t < m->tensors + m->count; t++) {
        if (t->cap == 0 || t->size == 0) continue;
        for (int i = 0; i < t->slices; i++)
            largest = max(largest, (t->slices > 1 ? t->heads[i] : t->norm).lower / t->cap);
    }
    return largest;
}

// within_caps: up to what float rounding may add.
static bool within_caps(const Model *m) { return norm_over_cap(m) <= 1 + 2 * ROUNDING; }

// check_promise: what training promises after every step, of the certificate as measured then.
static void check_promise(const Model *m, const Certificate *k, int step, const char *hint) {
    const Config *c = &m->config;
    if (holds_caps(c) && !within_caps(m))
        die(hint, "step %d: a norm is %.9g times its cap", step, norm_over_cap(m));
    if (c->lipschitz > 0 && is_constrained(c) && k->log10_sound > log10(c->lipschitz))
        die(hint, "step %d: certificate %s is above the budget %g", step,
            show_bound(k->log10_sound, 9), c->lipschitz);
}

// The budget (ours): K is chosen before training, with --lipschitz, and the caps follow from it. As
// the bound rises with every norm and every weight stays below its cap, the certificate of the
// weights is at most the bound at the caps, so at most the budget, after every single step.

// scale_caps: the budget's one knob: `factor` on W_head and, unless the residual is concat, on the
// scores and the MLP, too. W_v and W_o stay as they are: with norms of about 1 they hand tokens
// over whole, which costs next to nothing; and so do all layers of concat.
static void scale_caps(Config *c, double factor) {
    c->cap_head *= factor;
    if (c->residual != CONCAT) c->cap_qk *= factor, c->cap_in *= factor, c->cap_out *= factor;
}

// bound_at_caps: log10 of the sound bound that the caps times `factor` allow. Unless heads are
// capped one by one, a slice may take all of its matrix's norm: sigma_max(W^h) <= sigma_max(W), so
// |W^h| <= sqrt(H) |W|. With bracket_width, no certificate as measured exceeds this.
static double bound_at_caps(const Config *c, double factor) {
    Model m = {.config = *c};
    scale_caps(&m.config, factor);
    model_plan(&m);
    for (Tensor *t = m.tensors; t < m.tensors + m.count; t++) {
        if (t->size == 0) continue;
        t->norm.upper = t->cap * bracket_width(imin(t->rows, t->cols));
        for (int h = 0; h < c->heads; h++)
            t->heads[h].upper = t->norm.upper * (t->slices > 1 ? 1 : sqrt(c->heads));
    }
    Certificate out;
    compose(&m, norm(&m, EMBED, 0), &out);
    free(m.tensors), free(m.brackets);
    return out.log10_sound;
}

// apply_budget: scale the caps so that the bound at the caps is K = c->lipschitz, by bisection.
static void apply_budget(Config *c) {
    double low = log(0.05), high = log(1000); // factors on the preset's caps
    double goal = log10(c->lipschitz);
    if (bound_at_caps(c, exp(low)) > goal)
        die_usage("ask for more, or take fewer --blocks", "--lipschitz %g is too small: the "
                  "smallest possible with its settings is %.4g", c->lipschitz,
                  1.001 * pow(10, bound_at_caps(c, exp(low))));
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        if (bound_at_caps(c, exp(middle)) > goal) high = middle;
        else low = middle;
    }
    scale_caps(c, exp(low));
}

// Certified predictions (ours), (14) of the proof: at logits z with largest z_c, every other class
// j stays below while every embedding moves by at most eps in RMS norm, if z_c - z_j > |w_c -
// w_j|_2 sqrt(d) K_trunk eps: w_j the rows of W_head, K_trunk the trunk's constant on |x| <= R0 +
// eps.

// head_distances: |w_i - w_j|_2 sqrt(d) for all pairs of rows of W_head, (V, V).
static double *head_distances(const Model *m) {
    int V = m->config.vocabulary, d = m->config.width;
    const float *w = values(m, m->weights, W_HEAD, 0);
    double *distances = doubles((size_t)V * V);
    for (size_t ij = 0; ij < (size_t)V * V; ij++) {
        const float *a = w + ij / V * d, *b = w + ij % V * d;
        double sum = 0;
        for (int k = 0; k < d; k++) sum += square((double)a[k] - (double)b[k]);
        distances[ij] = sqrt(sum * d) * (1 + (d + 8) * EPSILON);
    }
    return distances;
}

// What float may have added to the gap of two logits, relative to their size: an estimate, see
// section 8 of the proof. Of two rows of W_head that are nearly equal, it can be all of the gap.
#define LOGIT_ERROR (sizeof(float) == 8 ? 2e-14 : 1e-5)

// logit_size: per unit of the trunk's RMS norm: the largest |w_j|_2 sqrt(d), which no cancelling in
// a sum makes small.
static double logit_size(const Model *m) {
    int d = m->config.width;
    return d * largest_row(values(m, m->weights, W_HEAD, 0), m->config.vocabulary, d);
}

// margin: how far the trunk's output may move, in RMS norm, before the prediction at logits z (V)
// can change, from distances (V, V) and the size of logits there; negative when the prediction is
// not the target.
static double margin(const float *z, int target, const double *distances, double size, int V) {
    double room = INFINITY;
    for (int j = 0; j < V; j++) size = max(size, fabs((double)z[j]));
    for (int j = 0; j < V; j++) {
        double gap = (double)z[target] - (double)z[j], reach = distances[(size_t)target * V + j];
        if (j != target && !(gap > 0)) return -1;
        if (j != target && reach > 0) room = min(room, max(0, gap - LOGIT_ERROR * size) / reach);
    }
    return room;
}

// certified_share: of positions of some windows, spread over a split: those that are right and
// provably stay so when every embedding of the window moves by up to eps. It may then leave
// |x| <= R0 by eps, so the trunk's constant is that of the larger domain.
static double certified_share(const Model *m, Workspace *spaces, Span split, int windows,
                              const double *distances, double eps) {
    int V = m->config.vocabulary, context = m->config.context, positions = 0, proven = 0;
    int d = m->config.width;
    double size = logit_size(m);
    Certificate wider;
    compose(m, norm(m, EMBED, 0) + eps, &wider);
    double reach = eps > 0 ? pow(10, wider.log10_trunk) * eps * (1 + 1e-9) : 0; // of its output
    #pragma omp parallel for schedule(dynamic, 1) reduction(+ : positions, proven)
    for (int i = 0; i < windows; i++) {
        Workspace *s = &spaces[omp_get_thread_num()];
        Span window = window_of(split, FULL_SPLIT, context, i, windows);
        int T = (int)window.count;
        forward_tokens(m, s, window.tokens, T);
        for (int t = 0; t < T; t++) {
            if (t % LOGIT_ROWS == 0) logits_forward(m, s, t, imin(LOGIT_ROWS, T - t));
            float *z = s->logits + (size_t)(t % LOGIT_ROWS) * V;
            double norm = rms(s->last + (size_t)t * d, (size_t)d);
            double room = margin(z, window.tokens[t + 1], distances, size * norm, V);
            proven += eps > 0 ? room > reach : room >= 0;
        }
        positions += T;
    }
    return (double)proven / positions;
}

// ---------------------------------------------------------------------------------------------
// 9. Text: any file is a sequence of bytes, and its vocabulary the sorted set of its distinct bytes
// (65 for tinyshakespeare). Shards of uint16 tokens, as llm.c and modded-nanogpt write them, stay
// in their files. The first 90 %, of several files all but a tenth of the last, train; the rest, or
// --val-data, validates.

typedef struct {
    Span *train;                 // `files` of them, then the whole of --val-data, if it was given
    int files;
    Span validation;
    size_t count;                // of all tokens
    int vocabulary;
    unsigned char symbols[256];  // id -> byte, for text
    bool is_text;
    uint64_t fingerprint;        // FNV-1a of the files, one after the other
} Data;

static bool same_inode(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_ino == y.st_ino && x.st_dev == y.st_dev;
}

// read_file: all bytes of a file, or death with this hint.
static unsigned char *read_file(const char *path, size_t *size, const char *hint) {
    struct stat status;
    bool there = stat(path, &status) == 0; // a pipe, once opened, may wait for ever
    if (there && !S_ISREG(status.st_mode)) die(hint, "%s is not a regular file", path);
    FILE *file = there ? fopen(path, "rb") : NULL;
    if (!file) die(hint, "cannot open %s: %s", path, strerror(errno));
    *size = (size_t)status.st_size;
    unsigned char *bytes = allocate(*size, 1);
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

// How files begin that are no text, in letters of either case.
static const struct { const char *start, *name; } foreign[] = {
    {"\xa1\xd9\x34\x01", "a shard of uint32 tokens"}, {"\x93NUMPY", "a NumPy array"},
    {"\x8a\xd8\x34\x01", "an evaluation set of llm.c"}, {"PK\3\4", "a zip archive"},
    {"\xc6\xd7\x34\x01", "a model of llm.c"}, {"\x1f\x8b", "a gzip file"},
    {"\xc7\xd7\x34\x01", "a state of llm.c"}, {"\x28\xb5\x2f\xfd", "a zstd file"},
    {"\xc8\xd7\x34\x01", "a tokenizer of llm.c"}, {"\xfd\x37zXZ", "an xz file"},
    {"PAR1\x15", "a Parquet file"}, {"%PDF-", "a PDF"}, {"<!doctype", "an HTML page"},
    {"<html", "an HTML page"}, {"<head>", "an HTML page"}};

// refuse_foreign: the bytes of a file, behind which stands a 0, are text or a shard, or death.
static void refuse_foreign(const char *path, const char *bytes, size_t size) {
    const char *start = bytes + strspn(bytes, " \t\r\n\xef\xbb\xbf"), *name = NULL;
    uint64_t length = UINT64_MAX; // of a safetensors header
    if (size > 8 && bytes[8] == '{') memcpy(&length, bytes, 8);
    if (length < size) name = "a safetensors file";
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (!strncasecmp(start, foreign[i].start, strlen(foreign[i].start))) name = foreign[i].name;
    if (name) die("give text, or a shard of uint16 tokens", "%s is %s, not text", path, name);
}

#define SHARD_MAGIC 20240520
enum { HEADER = 1024 }; // bytes of a shard before its tokens: magic, version, how many; zeros

static bool is_shard(const char *path) {
    int32_t header[3];
    struct stat status;
    FILE *file = stat(path, &status) == 0 && S_ISREG(status.st_mode) ? fopen(path, "rb") : NULL;
    bool read = file && fread(header, sizeof header, 1, file) == 1;
    if (file) fclose(file);
    return read && header[0] == SHARD_MAGIC;
}

// map_shard: the bytes of a shard, which the system fetches when they are read and forgets when it
// needs the memory. They stay mapped to the end; nobody may write to the file meanwhile.
static unsigned char *map_shard(const char *path, size_t *size) {
    struct stat status = {0};
    int file = open(path, O_RDONLY);
    bool opened = file >= 0 && fstat(file, &status) == 0;
    *size = (size_t)status.st_size;
    int32_t *header = opened ? mmap(NULL, *size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    if (header == MAP_FAILED)
        die("see that it can be read", "cannot map %s: %s", path, strerror(errno));
    close(file);
    if (header[1] != 1 || header[2] < 0 || *size != HEADER + 2 * (size_t)header[2])
        die("fetch the shard again", "%s announces version %d and %d tokens but has %zu bytes",
            path, header[1], header[2], *size);
    return (unsigned char *)header;
}

// load_file: the tokens of a text or a shard. The first makes the vocabulary, unless it is known.
static Span load_file(const char *path, Data *data) {
    bool seen[256] = {0}, known = data->vocabulary > 0, is_text = !is_shard(path);
    size_t size;
    unsigned char *bytes = is_text
        ? read_file(path, &size, "run prepare_data.py, or give --data FILE")
        : map_shard(path, &size);
    if (is_text) refuse_foreign(path, (char *)bytes, size);
    if (known && data->is_text != is_text)
        die("give one kind, the model's; --vocabulary is for shards", "%s is %s", path,
            is_text ? "text, not a token shard" : "a token shard, not text");
    data->is_text = is_text;
    for (size_t i = 0; i < size; i++) {
        data->fingerprint = (data->fingerprint ^ bytes[i]) * 0x100000001b3u;
        seen[bytes[i]] = true;
    }
    for (int b = 0; b < 256; b++)
        if (is_text && seen[b] && !known) data->symbols[data->vocabulary++] = (unsigned char)b;
    size_t count = is_text ? size : (size - HEADER) / 2;
    uint16_t *tokens = is_text ? allocate(count, sizeof *tokens) : (void *)(bytes + HEADER);
    for (size_t i = 0; i < count; i++) {
        int id = is_text ? id_of(data, bytes[i]) : tokens[i];
        if (id < 0 || (known && id >= data->vocabulary))
            die(is_text ? "give data in the model's vocabulary"
                : "give data in the model's vocabulary, or a new model a larger --vocabulary",
                "%s %d of %s at %zu is not among its %d",
                is_text ? "byte" : "token", is_text ? bytes[i] : id, path, i, data->vocabulary);
        if (id >= data->vocabulary) data->vocabulary = (id + 128) / 128 * 128; // 50257: 50304
        if (is_text) tokens[i] = (uint16_t)id;
    }
    if (is_text && seen[0]) // for instance nanoGPT's tokens, which have no header
        fprintf(stderr, "%s looks binary, with its NUL bytes; it is taken as text\n", path);
    if (is_text) free(bytes);
    data->count += count;
    return (Span){tokens, count};
}

// load_data: the shards of a pattern, which has a * or a [ in it (a ? is none: a checkpoint writes
// it for bytes that it cannot hold), in order of name, or one file, and one to validate on. Either
// may be "". `data` has the vocabulary, if it is known already, or is zero.
static Data load_data(const char *pattern, const char *validation, int context, Data data) {
    glob_t found = {0};
    bool one = !strpbrk(pattern, "*[") || access(pattern, F_OK) == 0 ||
               glob(pattern, 0, NULL, &found) != 0;
    data.fingerprint = 0xcbf29ce484222325u, data.count = 0;
    data.files = !*pattern ? 0 : one ? 1 : (int)found.gl_pathc;
    data.train = allocate((size_t)data.files + 1, sizeof(Span));
    for (int i = 0; i < data.files; i++) {
        const char *path = one ? pattern : found.gl_pathv[i];
        Span *span = &data.train[i];
        if (same_inode(path, validation))
            die("leave it out of --data, or --val-data away", "%s trains and validates", path);
        *span = load_file(path, &data);
        if (!one && data.is_text)
            die("join texts into one", "%s is text, but patterns are for token shards", path);
        size_t train = (size_t)(0.9 * (double)span->count);
        data.validation = (Span){span->tokens + train, span->count - train};
        if (span->count < 2 * (size_t)(context + 1) || data.validation.count < 2)
            die("give a longer text or a smaller --context", "%s has %zu tokens, fewer than two "
                "windows of context %d + 1 and a validation split need", path, span->count,
                context);
        if (i == data.files - 1 && !*validation) span->count = train;
    }
    if (*validation) data.validation = data.train[data.files] = load_file(validation, &data);
    if (data.validation.count < 2)
        die("give a longer text", "%s has too few tokens to validate on", validation);
    if (data.vocabulary < 2)
        die("give a text with at least two", "%s has a single distinct byte", pattern);
    globfree(&found);
    return data;
}

static void data_free(Data *data) {
    for (int i = 0; data->train && data->is_text && i <= data->files; i++)
        free((uint16_t *)(uintptr_t)data->train[i].tokens);
    free(data->train);
}

// ---------------------------------------------------------------------------------------------
// 10. Options: one table drives parsing, --help, ranges and the checkpoint's metadata. What the
// user gives is written over a preset.

typedef enum { INTEGER, REAL, STRING, CHOICE, HEADING } Type;
enum { TRAIN = 1, EVAL = 2, CERTIFY = 4, SAMPLE = 8, // the commands that take it
       SAVED = 16,    // goes into the checkpoint
       AGAIN = 32,    // may be given when a run is resumed
       BUDGETED = 64, // a cap that --lipschitz may choose: see new_settings
       LATER = 128,   // may be missing in a checkpoint, which then has what checkpoint_load says
       FORMER = 256,  // stands in older checkpoints only: the earlier name of a setting
       KEPT = TRAIN | SAVED };

typedef struct {
    const char *name;
    Type type;
    size_t offset;            // of its field in the settings
    double low, high;         // the range of a number, or of a string's length
    int use;
    const char *help;
    const char *const *words; // of a CHOICE, in the order of its enum, then NULL
} Option;

static const char *const preset_words[] = {"tight", "paper", "145m", NULL};
static const char *const activation_words[] = {"gelu", "maxmin", NULL};
static const char *const residual_words[] = {"convex", "plain", "concat", NULL};
static const char *const optimizer_words[] = {"muon", "adamw", NULL};
static const char *const constraint_words[] = {"soft",    "hard",   "normalize",
                                               "stiefel", "hammer", "decay", NULL};
#define AT(field) offsetof(Config, field)
#define GROUP(title) {title, HEADING, 0, 0, 0, 0, NULL, NULL}
#define INT(name, field, low, high, use, help) \
    {name, INTEGER, AT(field), low, high, use, help, NULL}
#define NUM(name, field, low, high, use, help) {name, REAL, AT(field), low, high, use, help, NULL}
#define FLAG(name, field, help) INT(name, field, 0, 1, KEPT, help)
#define TEXT(name, field, least, use, help) \
    {name, STRING, AT(field), least, PATH_SIZE - 1, use, help, NULL}
#define WORD(name, field, help) {name, CHOICE, AT(field), 0, 0, KEPT, help, field##_words}
static const Option options[] = {
    GROUP("everyday"),
    TEXT("data", data, 1, KEPT | AGAIN | EVAL | CERTIFY, "text or token shard, or 'shards_*.bin'"),
    TEXT("val-data", val_data, 0, KEPT | AGAIN | EVAL | CERTIFY | LATER,
         "what validates; else the last tenth of --data"),
    TEXT("model", model, 1, EVAL | CERTIFY | SAMPLE, "checkpoint to read"),
    TEXT("out", out, 1, TRAIN | AGAIN, "checkpoint to write"),
    TEXT("log", log, 1, TRAIN | AGAIN, "table of reports to write"),
    TEXT("resume", resume, 1, TRAIN | AGAIN, "checkpoint to go on from, with its settings"),
    WORD("preset", preset, "tight (ours: best at a sound bound; below --lipschitz 10 without q and "
         "k), paper (to the letter) or 145m (its larger one)"),
    NUM("lipschitz", lipschitz, 0, 1e300, KEPT, "K never exceeds it: caps are scaled; 0 = none"),
    INT("steps", steps, 1, 1e9, KEPT | AGAIN, "optimizer steps"),
    INT("batch", batch, 1, 1 << 20, KEPT, "windows of a step"),
    INT("seed", seed, 0, INT_MAX, KEPT | SAMPLE, "of all random draws"),
    TEXT("prompt", prompt, 0, SAMPLE, "text to go on from"),
    TEXT("vocabulary-file", vocabulary_file, 1, SAMPLE, "what tokens of shards are; see README"),
    INT("tokens", tokens, 0, 1e9, KEPT | SAMPLE, "length of a sample"),
    NUM("temperature", temperature, 0, 1e3, KEPT | SAMPLE, "of its draws; 0 = the likeliest"),
    INT("eval-every", eval_every, 1, 1e9, KEPT, "steps between reports"),
    INT("eval-windows", eval_windows, 0, 1e9, KEPT | LATER, "windows of a report; 0 = all"),
    INT("sample-every", sample_every, 0, 1e9, KEPT, "steps between samples; 0 = none"),
    INT("windows", windows, 0, 1e9, CERTIFY, "windows of --data to certify"),
    GROUP("network"),
    INT("vocabulary", vocabulary, 2, 1 << 16, TRAIN, "of shards; else by the first one's ids"),
    INT("width", width, 2, 1 << 16, KEPT, "of the residual stream, d"),
    INT("heads", heads, 1, 1 << 10, KEPT, "of attention, H"),
    INT("blocks", blocks, 1, MOST_BLOCKS, KEPT, "each attention and MLP, L"),
    INT("context", context, 1, 1 << 16, KEPT, "tokens of a window, T"),
    INT("mlp-ratio", mlp_ratio, 1, 64, KEPT, "hidden units per unit of width"),
    WORD("activation", activation, "gelu|maxmin (ours)"),
    {"residual", CHOICE, AT(residual), 0, 0, KEPT | LATER,
     "convex|plain: x + F(x)|concat: W [x; F(x)] (ours)", residual_words},
    INT("value-ratio", value_ratio, 1, 64, KEPT | LATER, "values per unit of width (ours)"),
    INT("attention-blocks", attention_blocks, 0, 1024, KEPT | LATER, "the first with it; 0 = all"),
    INT("position-only", position_only, 0, 1, KEPT | LATER, "attention without q and k (ours)"),
    FLAG("position-bias", position_bias, "learned score bias per head and distance (ours)"),
    FLAG("bias", bias, "biases in the MLP and on the logits (ours)"),
    GROUP("optimizer"),
    WORD("optimizer", optimizer, "muon|adamw (which wants --lr 0.002)"),
    NUM("lr", lr, 0, 1e6, KEPT, "learning rate at the start; falls linearly to 0"),
    NUM("momentum", momentum, 0, 0.999999, KEPT, "of Muon; AdamW's beta1"),
    NUM("beta2", beta2, 0, 0.999999, KEPT, "AdamW's, of squared gradients"),
    NUM("weight-decay", weight_decay, 0, 1e3, KEPT, "times u; AdamW: times the learning rate"),
    NUM("margin", margin, 0, 1e6, KEPT | LATER,
        "off the right logit in training: certifies more, with a larger loss (ours)"),
    GROUP("caps"),
    WORD("constraint", constraint, "soft|hard|normalize|stiefel|hammer|decay (the last hold none)"),
    NUM("cap", cap, 0, 1e6, TRAIN | BUDGETED, "of all matrices: RMS->RMS norm; 0 = none"),
    NUM("cap-qk", cap_qk, 0, 1e6, KEPT | BUDGETED, "of W_q and W_k"),
    NUM("cap-v", cap_v, 0, 1e6, KEPT | BUDGETED, "of W_v"),
    NUM("cap-o", cap_o, 0, 1e6, KEPT | BUDGETED, "of W_o"),
    NUM("cap-in", cap_in, 0, 1e6, KEPT | BUDGETED, "of W_in"),
    NUM("cap-out", cap_out, 0, 1e6, KEPT | BUDGETED, "of W_out"),
    NUM("cap-head", cap_head, 0, 1e6, KEPT | BUDGETED, "of W_head"),
    NUM("cap-embed", cap_embed, 0, 1e6, KEPT, "of the rows of E: RMS norm"),
    NUM("cap-bias", cap_bias, 0, 1e6, KEPT, "of b_in: RMS norm"),
    NUM("spectral-decay", spectral_decay, 0, 1, KEPT, "of --constraint decay: taken off the top"),
    GROUP("research knobs"),
    NUM("alpha", alpha, 0, 0.99, KEPT, "weight of a layer in the stream; 0 = the paper's 1/(2L)"),
    NUM("attention-factor", attention_factor, 1e-3, 1e3, KEPT, "the paper's 1/3"),
    NUM("softmax-scale", softmax_scale, 1e-3, 1e6, KEPT, "s in s q.k / dh"),
    FLAG("per-head", per_head, "update and cap every head's q, k, v on its own (ours)"),
    NUM("mass", mass, 1e-3, 1e6, KEPT, "of the blocks in the modular norm"),
    NUM("share-embed", share_embed, 0, 1e6, KEPT, "factor on the step of E (ours)"),
    NUM("share-head", share_head, 0, 1e6, KEPT, "factor on the step of W_head (ours)"),
    NUM("share-bias", share_bias, 0, 1e6, KEPT, "step of biases (ours)"),
    NUM("share-growth", share_growth, 0, 1e3, KEPT | LATER,
        "of steps with depth: 8 in the paper's headline; 0 = none"),
    INT("lanes", lanes, 1, 1 << 10, KEPT, "parts of a batch: most threads used"),
    INT("plain-residual", residual, CONVEX, PLAIN, FORMER, "now --residual"),
    INT("stop", stop, -1, 1e9, TRAIN | AGAIN, "save and stop at this step, to resume; -1 = never"),
};
enum { OPTIONS = sizeof options / sizeof *options };

// set_option: parse one value into the settings; `source` says where it came from, `status` is what
// to exit with when it is refused.
static void set_option(void *settings, const Option *o, const char *value, const char *source,
                       int status) {
    static const char *const kinds[] = {"an integer", "a number", "a text of a length"};
    void *field = (char *)settings + o->offset;
    char *end = NULL;
    double number = o->type == STRING ? (double)strlen(value) : strtod(value, &end);
    if (o->type == CHOICE) {
        for (int i = 0; o->words[i]; i++)
            if (!strcmp(o->words[i], value)) {
                *(int *)field = i;
                return;
            }
        fail(status, o->help, "%s%s does not know \"%s\"", source, o->name, value);
    }
    bool parsed = !end || (end > value && !*end && !isspace((unsigned char)*value));
    if (!parsed || !(number >= o->low && number <= o->high) ||
        (o->type == INTEGER && number != floor(number)))
        fail(status, "see --help", "%s%s takes %s from %.10g to %.10g, got \"%s\"", source,
             o->name, kinds[o->type], o->low, o->high, value);
    if (o->type == STRING) strcpy(field, value);
    else if (o->type == REAL) *(double *)field = number;
    else *(int *)field = (int)number;
}

// value_of: a setting as text, which set_option reads back.
static void value_of(char text[PATH_SIZE], const Option *o, const void *settings, int digits) {
    const void *field = (const char *)settings + o->offset;
    if (o->type == STRING) strcpy(text, field);
    else if (o->type == CHOICE) strcpy(text, o->words[*(const int *)field]);
    else if (o->type == REAL) snprintf(text, PATH_SIZE, "%.*g", digits, *(const double *)field);
    else snprintf(text, PATH_SIZE, "%d", *(const int *)field);
}

// read_arguments: --key value and --key=value of a command; value[i] becomes what was given for
// table[i], or NULL.
static void read_arguments(const Option *table, int count, int command, int argc, char **argv,
                           const char **value) {
    for (int i = 0; i < argc; i++) {
        const char *equal = strchr(argv[i], '=');
        size_t length = equal ? (size_t)(equal - argv[i]) : strlen(argv[i]);
        int k = 0;
        while (k < count && (strncmp(argv[i], "--", 2) || !(table[k].use & command) ||
                             strlen(table[k].name) != length - 2 ||
                             strncmp(table[k].name, argv[i] + 2, length - 2)))
            k++;
        if (k == count) die_usage("see --help", "%s is not an option of this command", argv[i]);
        if (value[k]) die_usage("give it once", "--%s is given twice", table[k].name);
        if (!equal && ++i == argc) die_usage("see --help", "--%s needs a value", table[k].name);
        value[k] = equal ? equal + 1 : argv[i];
    }
}

// given: what the command line said of the option of a field, or NULL.
static const char *given(const char **value, size_t offset) {
    for (int i = 0; i < OPTIONS; i++)
        if (value[i] && options[i].offset == offset) return value[i];
    return NULL;
}

// apply_given: what the command line says, in the table's order: --cap before single caps. Over a
// checkpoint's settings only what is AGAIN.
static void apply_given(Config *c, const char **value, bool resumed) {
    for (int i = 0; i < OPTIONS; i++) {
        const Option *o = &options[i];
        if (!value[i]) continue;
        if (resumed && !(o->use & AGAIN))
            die_usage("leave it out", "--%s comes from the checkpoint when a run is resumed",
                      o->name);
        set_option(c, o, value[i], "--", 2);
        if (o->offset == AT(cap))
            c->cap_qk = c->cap_v = c->cap_o = c->cap_in = c->cap_out = c->cap_head = c->cap;
    }
}

// new_settings: the preset, with what was given. A cap, or a constraint that holds none, takes the
// place of the preset's budget. With --residual concat a budget scales the head's cap alone: others
// may be given beside it.
static Config new_settings(const char **value) {
    const char *cap = NULL;
    Config c = preset_config(TIGHT);
    apply_given(&c, value, false);
    c = preset_config(c.preset); // which is known now
    apply_given(&c, value, false);
    small_budget(&c);
    apply_given(&c, value, false); // what is given is written over that, too
    for (int i = 0; i < OPTIONS; i++)
        if (value[i] && options[i].use & BUDGETED) cap = options[i].name;
    if (!given(value, AT(lipschitz)) && (cap || !holds_caps(&c))) c.lipschitz = 0;
    if (c.alpha == 0) c.alpha = 0.5 / c.blocks;
    if (c.lipschitz == 0) return c;
    if (cap && (c.residual != CONCAT || given(value, AT(cap_head)) || given(value, AT(cap))))
        die_usage("give one or the other", "--lipschitz chooses the caps, but --%s is given, too",
                  cap);
    if (!holds_caps(&c))
        die_usage("choose soft, hard, normalize or stiefel", "--lipschitz cannot be held by "
                  "--constraint %s", constraint_words[c.constraint]);
    for (const Option *o = options; o < options + OPTIONS; o++)
        if (!strncmp(o->name, "cap-", 4) && (c.bias || o->offset != AT(cap_bias)) &&
            (!c.position_only || o->offset != AT(cap_qk)) &&
            *(double *)((char *)&c + o->offset) == 0)
            die_usage("give it a positive cap, or --lipschitz 0", "--lipschitz cannot be held with "
                      "--%s 0", o->name);
    return c;
}

// ---------------------------------------------------------------------------------------------
// 11. Checkpoints: safetensors, which PyTorch, JAX, NumPy and the rest read. 8 bytes of header
// length, a JSON header, then the numbers, little-endian and row-major. The reader trusts nothing:
// what the header says is checked against the file first, and every refusal says why.

#if defined __BYTE_ORDER__ && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors is little-endian, and so must be the machine"
#endif
#define DTYPE (sizeof(float) == 4 ? "F32" : "F64") // `make double` writes doubles
#define REFETCH "give a checkpoint that lipgpt wrote, or fetch the file again"

// folder_of: the folder of a path, which may be named in many ways; returns the name in it.
static const char *folder_of(const char *path, char folder[PATH_SIZE + 8]) {
    const char *slash = strrchr(path, '/');
    int length = slash ? (int)(slash - path) + 1 : 1;
    snprintf(folder, PATH_SIZE + 8, "%.*s", length, slash ? path : ".");
    return slash ? slash + 1 : path;
}

// same_file: whether two paths name one file, through links, too, or would if it were written.
static bool same_file(const char *a, const char *b) {
    char folders[2][PATH_SIZE + 8];
    bool alike = !strcmp(folder_of(a, folders[0]), folder_of(b, folders[1]));
    return same_inode(a, b) || (alike && same_inode(folders[0], folders[1]));
}

// open_file: a temporary of our own beside path, with the directories that path needs, or death.
// No file that is there is touched.
static FILE *open_file(const char *path) {
    static char name[PATH_SIZE + 32];
    struct stat status;
    FILE *file = NULL;
    snprintf(name, sizeof name, "%s", path);
    for (char *p = strchr(name + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = 0;
        if (mkdir(name, 0777) != 0 && errno != EEXIST)
            die("choose another place", "cannot make the directory %s: %s", name, strerror(errno));
        *p = '/';
    }
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
        die("choose another place", "%s is not a regular file", path);
    for (int n = 0; !file; n++) {
        unfinished = NULL;
        snprintf(name, sizeof name, "%s.tmp.%ld.%d", path, (long)getpid(), n);
        if (lstat(name, &status) == 0) continue; // of another process that had this number
        unfinished = name; // before it is there: from its first moment, what ends us removes it
        file = fopen(name, "wx"); // x: only where nothing has that name
        if (!file && errno != EEXIST)
            die("choose another place", "cannot write %s: %s", path, strerror(errno));
    }
    return file;
}

// finish_file: the temporary is complete and becomes path, still open: whatever happens, path is
// never half written. Its folder is synced, too, where the system can do that.
static void finish_file(FILE *file, const char *path) {
    char folder[PATH_SIZE + 8];
    if (fflush(file) != 0 || ferror(file) || fsync(fileno(file)) != 0 ||
        rename(unfinished, path) != 0)
        die("make room, or choose another place", "cannot write %s: %s", path, strerror(errno));
    unfinished = NULL;
    folder_of(path, folder);
    int descriptor = open(folder, O_RDONLY);
    fsync(descriptor), close(descriptor);
}

// check_places: that the paths from `written` on can be written later on, and none is another one.
// No shard is written over, so whatever a pattern has matched is safe.
static void check_places(const char *const *paths, int written, int count) {
    for (int i = written; i < count; i++) {
        fclose(open_file(paths[i])), unlink(unfinished);
        unfinished = NULL;
        if (is_shard(paths[i])) die("give another name", "%s is a token shard", paths[i]);
        for (int j = 0; j < i; j++)
            if (same_file(paths[i], paths[j]))
                die("give each its own name", "%s and %s are one file", paths[j], paths[i]);
    }
}

// Array: (rows, cols) numbers, in memory and at bytes [begin, end) of a file's data.
typedef struct { char name[64]; int rows, cols; float *values; size_t begin, end; } Array;

// write_arrays: a whole file. metadata is JSON text, `"key":"value",...`.
static void write_arrays(const char *path, const char *metadata, Array *arrays, int count) {
    uint64_t length = 0; // of the header: written again when it is known
    size_t begin = 0;
    FILE *file = open_file(path);
    fwrite(&length, 8, 1, file);
    fprintf(file, "{\"__metadata__\":{%s}", metadata);
    for (const Array *a = arrays; a < arrays + count; a++) {
        size_t end = begin + (size_t)a->rows * (size_t)a->cols * sizeof(float);
        fprintf(file, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%d,%d],\"data_offsets\":[%zu,%zu]}",
                a->name, DTYPE, a->rows, a->cols, begin, end);
        begin = end;
    }
    fprintf(file, "}       ");
    length = (uint64_t)ftell(file) / 8 * 8 - 8; // the data starts at a multiple of 8
    fseek(file, 0, SEEK_SET), fwrite(&length, 8, 1, file);
    fseek(file, (long)length + 8, SEEK_SET);
    for (const Array *a = arrays; a < arrays + count; a++)
        fwrite(a->values, sizeof(float), (size_t)a->rows * (size_t)a->cols, file);
    finish_file(file, path), fclose(file);
}

// arrays_of: weights, momenta and, for AdamW, mean squares: of every tensor that has any.
static Array *arrays_of(const Model *m, int *count) {
    static const char *const prefixes[] = {"", "momentum.", "second."};
    float *const sets[] = {m->weights, m->momentum, m->second};
    Array *arrays = allocate(3 * (size_t)m->count, sizeof *arrays);
    *count = 0;
    for (int set = 0; set < (m->second ? 3 : 2); set++)
        for (const Tensor *t = m->tensors; t < m->tensors + m->count; t++) {
            Array *a = &arrays[*count];
            snprintf(a->name, sizeof a->name, "%s%s", prefixes[set], t->name);
            a->rows = t->rows, a->cols = t->cols, a->values = sets[set] + t->offset;
            *count += t->size > 0;
        }
    return arrays;
}

// What is in a file of tensors, and how to find it. Writers order, indent and escape as they like,
// so no more of JSON is taken for granted than it says: a quote inside of a string is escaped.
typedef struct {
    const char *path;
    unsigned char *bytes;
    size_t size, data;  // of the file; where its data starts
    char *header, *end; // a copy of the JSON, with a 0 behind it
} File;

static const char *skip_space(const char *p) { return p + strspn(p, " \t\r\n"); }

// find: what follows `"key":` between two places of the header, or NULL.
static const char *find(const File *f, const char *from, const char *end, const char *key) {
    const char *found = NULL;
    size_t n = strlen(key);
    for (const char *p = strchr(from, '"'); p && p < end; p = strchr(p + 1, '"')) {
        const char *after = p + 1 + n;
        if (p[-1] == '\\' || strncmp(p + 1, key, n) || *after != '"') continue;
        after = skip_space(after + 1);
        if (*after != ':') continue;
        if (found) die(REFETCH, "%s: %s stands twice", f->path, key);
        found = skip_space(after + 1);
    }
    return found;
}

static const char *const escapes[] = {"\"\\/bfnrt", "\"\\/\b\f\n\r\t"}; // JSON's, and what they are

// read_hex: what the four digits at p say, or -1.
static int read_hex(const char *p) {
    char digits[5] = {0};
    if (strspn(p, "0123456789abcdefABCDEF") < 4) return -1;
    memcpy(digits, p, 4);
    return (int)strtol(digits, NULL, 16);
}

// read_string: the string at p, decoded, if it is one and fits into `size` bytes; a 0 in it becomes
// c0 80, lest the text end there.
static bool read_string(const char *p, char *text, size_t size) {
    const char *last = text + size - 5;
    if (!p || *p++ != '"') return false;
    while (*p != '"') {
        int code = (unsigned char)*p++;
        if (code < 32 || text > last) return false;
        if (code == '\\' && *p == 'u') {
            code = read_hex(p + 1);
            if (code < 0) return false;
            p += 5;
            int low = code >> 10 == 0x36 && p[0] == '\\' && p[1] == 'u' ? read_hex(p + 2) : -1;
            if (low >> 10 == 0x37) { // two halves of one
                code = 0x10000 + ((code & 0x3ff) << 10) + (low & 0x3ff);
                p += 6;
            }
            int more = (code > 0x7f || !code) + (code > 0x7ff) + (code > 0xffff); // bytes of UTF-8
            *text++ = (char)("\x00\xc0\xe0\xf0"[more] | code >> 6 * more);
            while (more--) *text++ = (char)(0x80 | (code >> 6 * more & 0x3f));
        } else if (code == '\\') {
            const char *known = *p ? strchr(escapes[0], *p++) : NULL;
            if (!known) return false;
            *text++ = escapes[1][known - escapes[0]];
        } else
            *text++ = (char)code;
    }
    *text = 0;
    return true;
}

// read_sizes: the array of one or two whole numbers at p; returns how many, 0 if that is no such.
static int read_sizes(const char *p, size_t numbers[2]) {
    char last = 0;
    if (p && sscanf(p, "[ %19zu %c", &numbers[0], &last) == 2 && last == ']') return 1;
    if (p && sscanf(p, "[ %19zu , %19zu %c", &numbers[0], &numbers[1], &last) == 3 && last == ']')
        return 2;
    return 0;
}

// open_tensors: the file in memory, and its header found.
static File open_tensors(const char *path) {
    File f = {.path = path};
    uint64_t length = 0;
    f.bytes = read_file(path, &f.size, "give --model or --resume a checkpoint that lipgpt wrote");
    if (f.size < 8)
        die(REFETCH, "%s has %zu bytes, too few for a safetensors file", path, f.size);
    memcpy(&length, f.bytes, 8);
    if (length > 100000000 || length > f.size - 8 || length < 2 || f.bytes[8] != '{')
        die(REFETCH, "%s is not a safetensors file, or truncated: a header of %llu bytes in a file "
            "of %zu", path, (unsigned long long)length, f.size);
    f.data = 8 + (size_t)length;
    f.header = memcpy(allocate((size_t)length + 1, 1), f.bytes + 8, (size_t)length);
    f.end = f.header + length;
    return f;
}

// metadata_of: a value of the metadata; `absent`, or NULL, is what it is where it is missing.
static char *metadata_of(const File *f, const char *key, const char *absent) {
    static char text[2 * PATH_SIZE];
    const char *value = find(f, f->header, f->end, key);
    if (!value && absent) return strcpy(text, absent);
    if (!value) die(REFETCH, "%s: metadata %s is missing: no checkpoint of lipgpt", f->path, key);
    if (!read_string(value, text, sizeof text))
        die(REFETCH, "%s: metadata %s is not a string, or too long", f->path, key);
    return text;
}

// metadata_number: a value of the metadata from 0 to `most`.
static uint64_t metadata_number(const File *f, const char *key, uint64_t most) {
    const char *text = metadata_of(f, key, NULL);
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno || number > most)
        die(REFETCH, "%s: metadata %s is \"%s\", expected 0 to %llu", f->path, key, text,
            (unsigned long long)most);
    return number;
}

// locate: where in the file an array is, after checking all that the header says of it.
static void locate(const File *f, Array *a) {
    char dtype[16] = "none";
    size_t shape[2] = {0}, range[2] = {0}, numbers = (size_t)a->rows * (size_t)a->cols;
    const char *entry = find(f, f->header, f->end, a->name);
    const char *end = entry && *entry == '{' ? strchr(entry, '}') : NULL;
    if (!end) die(REFETCH, "%s: tensor %s is missing", f->path, a->name);
    if (!read_string(find(f, entry, end, "dtype"), dtype, sizeof dtype) || strcmp(dtype, DTYPE))
        die(REFETCH, "%s: tensor %s has dtype %s, expected %s", f->path, a->name, dtype, DTYPE);
    int sizes = read_sizes(find(f, entry, end, "shape"), shape);
    size_t rows = sizes == 2 ? shape[0] : 1, cols = sizes == 2 ? shape[1] : shape[0];
    if (sizes == 0 || rows != (size_t)a->rows || cols != (size_t)a->cols)
        die(REFETCH, "%s: tensor %s is %zu x %zu, the settings want %d x %d", f->path, a->name,
            rows, cols, a->rows, a->cols);
    if (read_sizes(find(f, entry, end, "data_offsets"), range) != 2 || range[1] < range[0] ||
        range[1] - range[0] != numbers * sizeof(float) || range[1] > f->size - f->data)
        die(REFETCH, "%s: tensor %s has %zu numbers but offsets %zu to %zu in %zu bytes of data",
            f->path, a->name, numbers, range[0], range[1], f->size - f->data);
    a->begin = range[0], a->end = range[1];
}

// load_arrays: all numbers of the model, once every array is known to have a place of its own.
static void load_arrays(const File *f, const Model *m) {
    int count;
    Array *arrays = arrays_of(m, &count);
    for (Array *a = arrays; a < arrays + count; a++) {
        locate(f, a);
        for (Array *b = arrays; b < a; b++)
            if (a->begin < b->end && b->begin < a->end)
                die(REFETCH, "%s: tensors %s and %s overlap", f->path, b->name, a->name);
    }
    for (Array *a = arrays; a < arrays + count; a++) {
        memcpy(a->values, f->bytes + f->data + a->begin, a->end - a->begin);
        for (size_t i = 0; i < (a->end - a->begin) / sizeof(float); i++)
            if (!isfinite(a->values[i]) || (a->values[i] < 0 && !strncmp(a->name, "second.", 7)))
                die(REFETCH, "%s: tensor %s has %g at %zu", f->path, a->name, (double)a->values[i],
                    i);
    }
    free(arrays);
}

// Progress: of a run, with its data's fingerprint and the loss of its last step.
typedef struct { int step; Rng rng; uint64_t fingerprint; double train_loss; } Progress;

// is_utf8: whether JSON can hold a text as it is (RFC 3629).
static bool is_utf8(const char *text) {
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        int more = (*p >= 0xc2) + (*p >= 0xe0) + (*p >= 0xf0); // bytes that follow, from 0x80 on
        int low = *p == 0xe0 ? 0xa0 : *p == 0xf0 ? 0x90 : 0x80;
        int high = *p == 0xed ? 0x9f : *p == 0xf4 ? 0x8f : 0xbf;
        if (*p >= 0x80 && (more == 0 || *p > 0xf4 || p[1] < low || p[1] > high)) return false;
        for (; more > 0; more--)
            if (*++p >> 6 != 2) return false;
    }
    return true;
}

// keep_old: what is there before a new run writes stays under another name, one that is free.
static void keep_old(const char *path) {
    char old[PATH_SIZE + 32];
    int number = 2;
    snprintf(old, sizeof old, "%s.old", path);
    if (access(path, F_OK) != 0) return;
    while (link(path, old) != 0) {
        if (errno != EEXIST) die("move it away", "cannot keep %s: %s", path, strerror(errno));
        if (same_inode(path, old)) break; // kept before, by a run that saved nothing
        snprintf(old, sizeof old, "%s.old%d", path, number++);
    }
    fprintf(stderr, "%s is there already; it is kept as %s\n", path, old);
}

// checkpoint_save: weights, momenta, settings, vocabulary, progress and certificate. The format's
// number rises when a meaning changes; a new setting is listed, and refused where it is not known;
// other metadata, perhaps another program's, may be left unread.
static void checkpoint_save(const char *path, const Model *m, const Data *data, const Progress *p,
                            const Certificate *k) {
    char *metadata, value[PATH_SIZE];
    size_t length;
    int count;
    FILE *text = open_memstream(&metadata, &length);
    if (!text) die("free some memory", "cannot save %s: %s", path, strerror(errno));
    fprintf(text, "\"format\":\"lipgpt 3\",\"settings\":\"");
    for (const Option *o = options; o < options + OPTIONS; o++)
        if (o->use & SAVED) fprintf(text, "%s ", o->name);
    for (const Option *o = options; o < options + OPTIONS; o++) {
        if (!(o->use & SAVED)) continue;
        value_of(value, o, &m->config, 17);
        fprintf(text, "\",\"%s\":\"", o->name);
        bool whole = is_utf8(value); // or it can only be told about, and is given again with --data
        for (const char *q = value; *q; q++) {
            int c = (unsigned char)*q >= 0x80 && !whole ? '?' : (unsigned char)*q;
            fprintf(text, c < 32 || c == '"' || c == '\\' ? "\\u%04x" : "%c", c);
        }
    }
    fprintf(text, "\",\"data_fingerprint\":\"%llu\",", (unsigned long long)p->fingerprint);
    fprintf(text, "\"step\":\"%d\",\"rng\":\"%llu\",\"certificate_log10\":\"%.9f\","
            "\"paper_bound_log10\":\"%.9f\",\"constrained\":\"%d\",\"vocabulary_size\":\"%d\","
            "\"train_loss\":\"%.17g\",\"vocabulary\":\"", p->step,
            (unsigned long long)p->rng.state, rounded_up(k->log10_sound, 1e9),
            rounded_up(k->log10_paper, 1e9), is_constrained(&m->config), data->vocabulary,
            p->train_loss);
    if (data->is_text)
        for (int i = 0; i < data->vocabulary; i++) fprintf(text, "%02x", data->symbols[i]);
    fprintf(text, "\""), fclose(text);
    Array *arrays = arrays_of(m, &count);
    write_arrays(path, metadata, arrays, count);
    free(arrays), free(metadata);
}

// read_vocabulary: of a text, rising bytes in hexadecimal; of shards, only its size.
static Data read_vocabulary(const File *f) {
    Data v = {.vocabulary = (int)metadata_number(f, "vocabulary_size", 65536)};
    const char *hex = metadata_of(f, "vocabulary", NULL);
    size_t length = strlen(hex);
    v.is_text = length > 0;
    bool good = v.vocabulary >= 2 && (!v.is_text || length == 2 * (size_t)v.vocabulary);
    for (size_t i = 0; 2 * i < length && good; i++) {
        unsigned byte = 0;
        good = sscanf(hex + 2 * i, "%2x", &byte) == 1 && (i == 0 || byte > v.symbols[i - 1]);
        if (good) v.symbols[i] = (unsigned char)byte; // rising, so at most 256 of them
    }
    if (!good)
        die(REFETCH, "%s: the vocabulary is not %d rising bytes", f->path, v.vocabulary);
    return v;
}

// checkpoint_load: the model with its settings; vocabulary and progress are set, too.
static Model *checkpoint_load(const char *path, Data *vocabulary, Progress *progress) {
    File f = open_tensors(path);
    Config c = preset_config(PAPER);
    c.eval_windows = 0; // before there was such an option, reports took all
    char source[PATH_SIZE + 32];
    const char *format = metadata_of(&f, "format", NULL);
    bool older = !strcmp(format, "lipgpt 2"); // with older names of alpha and momentum
    if (!older && strcmp(format, "lipgpt 3"))
        die(REFETCH, "%s: format %s, expected lipgpt 2 or 3", path, format);
    snprintf(source, sizeof source, "%s: ", path);
    char *settings = metadata_of(&f, "settings", "");
    for (char *name = strtok(settings, " "); name; name = strtok(NULL, " ")) {
        const Option *o = options;
        while (o < options + OPTIONS && strcmp(o->name, name)) o++;
        if (o == options + OPTIONS)
            die("use the lipgpt that wrote it, or a newer one", "%ssetting %s is not known here",
                source, name);
    }
    for (const Option *o = options; o < options + OPTIONS; o++) {
        const char *name = o->name;
        if (older && o->offset == AT(alpha)) name = "residual";
        if (older && o->offset == AT(momentum)) name = "beta";
        bool there = find(&f, f.header, f.end, name);
        if (o->use & LATER && (older || !there)) continue;
        if (o->use & SAVED || (o->use & FORMER && there))
            set_option(&c, o, metadata_of(&f, name, NULL), source, 1);
    }
    *vocabulary = read_vocabulary(&f);
    progress->step = (int)metadata_number(&f, "step", INT_MAX);
    progress->rng.state = metadata_number(&f, "rng", UINT64_MAX);
    progress->fingerprint = metadata_number(&f, "data_fingerprint", UINT64_MAX);
    progress->train_loss = strtod(metadata_of(&f, "train_loss", "nan"), NULL);
    c.vocabulary = vocabulary->vocabulary;
    config_check(&c, 1);
    Model plan = {.config = c};
    model_plan(&plan), free(plan.tensors), free(plan.brackets);
    size_t need = (c.optimizer == ADAMW ? 3 : 2) * plan.size * sizeof(float);
    if (need != f.size - f.data) // before memory is taken for it
        die(REFETCH, "%s has %zu bytes of data, its settings want %zu, in %s", path,
            f.size - f.data, need, DTYPE);
    Model *m = model_create(&c);
    load_arrays(&f, m);
    free(f.header), free(f.bytes);
    return m;
}

// ---------------------------------------------------------------------------------------------
// 12. The four commands, and main.

typedef struct { // everything that a command holds
    Model *m;
    Data data;
    Progress progress;
    Workspace *spaces; // one per thread
    Certificate certificate;
    double *seen;      // (2L + 1), the largest norm before every layer and after the last, on data
    float *lanes;      // to train: gradients, see batch_gradient
    int first, saved, logged; // steps: at the start, in the checkpoint, in the log's last row
    int part;                 // windows that a report validates, 0 = all
    double began;
} Run;

// run_create: takes over m and data; run_free gives all back and returns the exit status.
static Run run_create(Model *m, Data data, Progress progress) {
    return (Run){.m = m, .data = data, .progress = progress,
                 .spaces = workspaces_create(&m->config, omp_get_max_threads()),
                 .seen = doubles(2 * (size_t)m->config.blocks + 1), .began = seconds(),
                 .first = progress.step, .saved = -1};
}

static int run_free(Run *r, int status) {
    workspaces_free(r->spaces, &r->m->config, omp_get_max_threads());
    model_free(r->m);
    data_free(&r->data), free(r->seen), free(r->lanes);
    return status;
}

static void print_score(const char *name, Score s) {
    printf("%s_loss\t%.9g\n%s_accuracy\t%.4f\n", name, s.loss, name, s.accuracy);
    printf("%s_correct\t%d\n%s_positions\t%d\n", name, s.correct, name, s.positions);
}

// print_results: bounds and, with data, loss and accuracy, as name<TAB>value; after a signal, none.
// Of shards, a run validates no more at its end than in a report.
static void print_results(const Run *r, bool with_data) {
    double sound = r->certificate.log10_sound, paper = r->certificate.log10_paper;
    if (with_data) {
        bool sliced = r->data.is_text; // the slice belongs to Shakespeare, and costs 1280 windows
        int part = sliced ? 0 : r->part;
        Score slice = {0}, score;
        if (sliced)
            slice = evaluate(r->m, r->spaces, r->data.validation, PAPER_SLICE, 0, r->seen);
        score = evaluate(r->m, r->spaces, r->data.validation, FULL_SPLIT, part, r->seen);
        if (interrupted) return;
        print_score(part ? "part" : "full", score);
        if (sliced) print_score("slice", slice);
        printf("largest_activation\t%.4g\n", score.largest);
    }
    printf("certificate\t%s\ncertificate_log10\t%.9f\n", show_bound(sound, 9),
           rounded_up(sound, 1e9));
    printf("paper_bound\t%s\npaper_bound_log10\t%.9f\n", show_bound(paper, 9),
           rounded_up(paper, 1e9));
    if (!is_constrained(&r->m->config) || !within_caps(r->m))
        printf("note\tnot constrained: this is a measurement of these weights, not a guarantee\n");
}

// write_token: a symbol of a text; of shards what the token's line says, a JSON string whose
// characters, 0 to 255, are bytes; or its number, if there is no such line.
static void write_token(FILE *file, const Data *data, const char *lines, int token) {
    char text[PATH_SIZE];
    for (int i = 0; lines && i < token; i++)
        if ((lines = strchr(lines, '\n'))) lines++;
    if (data->is_text) fputc(data->symbols[token], file);
    else if (!read_string(lines, text, sizeof text)) fprintf(file, "%d ", token);
    else
        for (const char *p = text; *p; p++) { // UTF-8 of one byte, or of two
            bool two = (*p & 0xfc) == 0xc0 && p[1];
            fputc(two ? (*p & 3) << 6 | (p[1] & 0x3f) : *p, file);
            p += two;
        }
}

// write_sample: prompt and continuation. The context slides and nothing is cached. Without a prompt
// a new line begins, or in a model without new lines the first symbol.
static void write_sample(FILE *file, const Run *r, const Config *settings) {
    const Config *c = &r->m->config;
    const char *prompt = settings->prompt;
    size_t size;
    const char *path = settings->vocabulary_file, *hint = "see prepare_data.py --help";
    char *lines = *path ? (char *)read_file(path, &size, hint) : NULL; // and a 0 behind it
    if (lines && *lines != '"') die(hint, "%s begins with no JSON string", path);
    int T = 0, given = (int)strlen(prompt), length = given > 0 ? given : 1;
    uint16_t *window = allocate((size_t)c->context, sizeof *window);
    Rng rng = {(uint64_t)settings->seed};
    for (int n = 0; n < given; n++)
        if (id_of(&r->data, (unsigned char)prompt[n]) < 0)
            die(r->data.is_text ? "use the characters of its training text"
                : "leave it out: this model was trained on token numbers, and writes them",
                "byte %d of --prompt is not known to the model", (unsigned char)prompt[n]);
    for (int n = 0; n < length + settings->tokens && !interrupted; n++) {
        int token = id_of(&r->data, (unsigned char)(n < given ? prompt[n] : '\n'));
        if (token < 0) token = 0;
        if (n >= length) {
            forward_tokens(r->m, r->spaces, window, T);
            logits_forward(r->m, r->spaces, T - 1, 1);
            token = draw(r->spaces->logits, c->vocabulary, settings->temperature, &rng);
        }
        if (n < given || n >= length) write_token(file, &r->data, lines, token);
        if (T == c->context) {
            T--;
            memmove(window, window + 1, (size_t)T * sizeof *window);
        }
        window[T++] = (uint16_t)token;
    }
    fputc('\n', file);
    free(window), free(lines);
}

// open_log: a new log with its header, or that of a resumed run up to its step. Later lines are of
// another run, or of one that went further: that log is kept. The columns say whether it is the
// full split that reports validate, or a part.
static FILE *open_log(Run *r) {
    const Config *c = &r->m->config;
    char line[1024];
    FILE *old = *c->resume ? fopen(c->log, "r") : NULL;
    if (!old && *c->resume && errno != ENOENT)
        die("give another --log", "cannot read %s to go on with it: %s", c->log, strerror(errno));
    if (old && fgets(line, sizeof line, old) && strncmp(line, "step\t", 5))
        die("give another --log", "%s is no log of lipgpt", c->log);
    FILE *log = open_file(c->log);
    const char *split = r->part ? "part" : "full";
    fprintf(log, "step\ttokens\ttrain_loss\t%s_loss\t%s_accuracy\tcertificate\tpaper_bound\t"
            "largest_activation\tlargest_norm_over_cap\tlr\tseconds\n", split, split);
    bool later = false;
    while (old && fgets(line, sizeof line, old)) {
        if (!isdigit((unsigned char)*line) || !strchr(line, '\n')) continue;
        if (atoi(line) > r->first) later = true;
        else fputs(line, log), r->logged = atoi(line);
    }
    if (old) fclose(old);
    if (later) keep_old(c->log);
    finish_file(log, c->log);
    return log;
}

// show_progress: what a terminal redraws after every step, and what a report begins with.
static void show_progress(const Run *r) {
    const Config *c = &r->m->config;
    int steps = r->progress.step - r->first; // 0 where a run only finishes
    double pace = (seconds() - r->began) / max(1, steps); // seconds per step
    double rate = steps > 0 ? c->batch / pace * c->context : 0;
    long long left = (long long)(pace * (c->steps - r->progress.step));
    fprintf(stderr, "%s%d/%d  train %.4f  %.0f tokens/s  ETA %lld:%02lld:%02lld", fresh_line(),
            r->progress.step, c->steps, r->progress.train_loss, rate, left / 3600, left / 60 % 60,
            left % 60);
}

#define BUG "report this as a bug"
// report: a checkpoint first, because validation may take long; then one line of the log, unless it
// is there already. After a signal the checkpoint is enough: the run that goes on writes the line.
static void report(Run *r, FILE *log) {
    const Config *c = &r->m->config;
    int step = r->progress.step;
    certify(r->m, &r->certificate);
    check_promise(r->m, &r->certificate, step, BUG);
    checkpoint_save(c->out, r->m, &r->data, &r->progress, &r->certificate);
    r->saved = step;
    if (r->logged == step) return;
    Score score = evaluate(r->m, r->spaces, r->data.validation, FULL_SPLIT, r->part, r->seen);
    if (interrupted) return;
    const char *K = show_bound(r->certificate.log10_sound, 6);
    const char *paper = show_bound(r->certificate.log10_paper, 6);
    fprintf(log, "%d\t%.0f\t%.4f\t%.4f\t%.4f\t%s\t%s\t%.4g\t%.6f\t%.6g\t%.1f\n", step,
            (double)step * c->batch * c->context, r->progress.train_loss, score.loss,
            score.accuracy, K, paper, score.largest, norm_over_cap(r->m),
            c->lr * (1 - (step - 1.0) / c->steps), seconds() - r->began);
    if (fflush(log) != 0) die("make room on the disk", "cannot write the log: %s", strerror(errno));
    r->logged = step;
    show_progress(r);
    fprintf(stderr, "  validation %.4f (%.2f %%)", score.loss, 100 * score.accuracy);
    if (r->part) fprintf(stderr, " on %d windows", r->part);
    fprintf(stderr, "  certificate %s  paper's bound %s\n", K, paper);
}

// new_run: a fresh model, of the preset and what was given.
static Run new_run(const char **value) {
    Config c = new_settings(value);
    Data data = load_data(c.data, c.val_data, c.context, (Data){.vocabulary = c.vocabulary});
    c.vocabulary = data.vocabulary;
    if (c.lipschitz > 0) apply_budget(&c);
    config_check(&c, 2);
    Model *m = model_create(&c);
    Progress progress = {0, {(uint64_t)c.seed}, data.fingerprint, 0};
    model_init(m, &progress.rng);
    return run_create(m, data, progress);
}

// resumed_run: the model of a checkpoint with its settings, but for --steps, --data and the like.
static Run resumed_run(const char *path, const char **value) {
    Data known;
    Progress progress;
    Model *m = checkpoint_load(path, &known, &progress);
    Config *c = &m->config;
    snprintf(c->out, sizeof c->out, "%s", path);
    apply_given(c, value, true);
    Run r = run_create(m, load_data(c->data, c->val_data, c->context, known), progress);
    if (r.data.fingerprint != progress.fingerprint)
        die("give the same --data and --val-data", "%s is not the text of the run", c->data);
    int end = c->stop >= 0 && progress.step < c->steps ? c->stop - 1 : c->steps; // done: repeated
    if (progress.step > end)
        die("give more --steps, or a later --stop", "%s is at step %d already", path,
            progress.step);
    certify(m, &r.certificate);
    check_promise(m, &r.certificate, progress.step, REFETCH);
    return r;
}

// command_train: steps to the end, --stop or a signal, with reports between; then the results.
static int command_train(const char **value, int command) {
    (void)command;
    const char *resumed = given(value, AT(resume));
    Run r = resumed ? resumed_run(resumed, value) : new_run(value);
    const Config *c = &r.m->config;
    r.lanes = floats((size_t)lanes_of(c) * r.m->size);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &action, NULL), sigaction(SIGTERM, &action, NULL); // before any temporary
    if (signal(SIGHUP, SIG_IGN) != SIG_IGN) sigaction(SIGHUP, &action, NULL); // no nohup
    signal(SIGPIPE, SIG_IGN); // whoever read the progress is gone: the run goes on
    char path[PATH_SIZE + 8];
    snprintf(path, sizeof path, "%s.txt", c->out);
    bool same = resumed && same_file(resumed, c->out); // it goes on in its own file
    const char *from = resumed && !same ? resumed : c->data;
    check_places((const char *const[]){c->data, c->val_data, from, c->out, path, c->log}, 3, 6);
    if (!same) keep_old(c->out), keep_old(path);
    if (!resumed) keep_old(c->log);
    if (c->eval_windows < window_count(r.data.validation, FULL_SPLIT, c->context))
        r.part = c->eval_windows;
    FILE *log = open_log(&r);
    fprintf(stderr, "%zu parameters, %d threads, %d lanes; %s: %zu tokens, vocabulary %d\n",
            r.m->size, omp_get_max_threads(), lanes_of(c), c->data, r.data.count, c->vocabulary);
    if (!is_constrained(c))
        fprintf(stderr, "not constrained: the certificate will measure, not guarantee\n");
    int end = c->stop >= 0 && c->stop < c->steps ? c->stop : c->steps;
    for (int step = r.first; true; step = r.progress.step) {
        if ((step > 0 && step % c->eval_every == 0) || step >= end) report(&r, log);
        if (step >= end || interrupted) break; // > end: a finished run was given an earlier --stop
        if (c->sample_every && step > r.first && step % c->sample_every == 0)
            fputs(fresh_line(), stderr), write_sample(stderr, &r, c);
        r.progress.train_loss = train_step(r.m, r.spaces, r.data.train, r.data.files,
                                           &r.progress.rng, step, r.lanes);
        r.progress.step++;
#ifdef CHECK_EVERY_STEP // make debug, and the tests
        certify(r.m, &r.certificate);
        check_promise(r.m, &r.certificate, r.progress.step, BUG);
#endif
        if (isatty(2)) show_progress(&r);
    }
    if (r.saved != r.progress.step) report(&r, log); // a signal came
    fclose(log);
    bool over = r.progress.step == c->steps;
    if (over) print_results(&r, true);
    FILE *sample = over && !interrupted ? open_file(path) : NULL;
    if (sample) write_sample(sample, &r, c);
    if (!sample || interrupted) {
        fprintf(stderr, "stopped at step %d of %d; go on with: ./lipgpt train --resume \"%s\" "
                "--log \"%s\"\n", r.progress.step, c->steps, c->out, c->log);
        if (sample) fclose(sample), unlink(unfinished);
        return run_free(&r, interrupted ? 128 + interrupted : 0);
    }
    finish_file(sample, path), fclose(sample);
    printf("checkpoint\t%s\nsample\t%s\nlog\t%s\n", c->out, path, c->log);
    return run_free(&r, 0);
}

// print_predictions: certified shares, on --windows windows; or why there are none.
enum { MOST_SYMBOLS = 4096 }; // a distance for every pair of them
enum { LEVELS = 7 }; // of eps
static const double levels[LEVELS] = {0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5};
static void print_predictions(Run *r, int windows) {
    if (r->m->config.vocabulary > MOST_SYMBOLS) {
        printf("\nnote\tmore than %d symbols: certified predictions are left out\n", MOST_SYMBOLS);
        return;
    }
    double *distances = head_distances(r->m);
    Span split = r->data.validation;
    windows = imin(windows, window_count(split, FULL_SPLIT, r->m->config.context));
    printf("\neps\tcertified_accuracy\t(%d windows)\n", windows);
    for (int i = 0; i < LEVELS; i++)
        printf("%g\t%.4f\n", levels[i],
               certified_share(r->m, r->spaces, split, windows, distances, levels[i]));
    free(distances);
}

// command_use: eval, certify and sample: what a saved model says. Unless data is given, eval takes
// the text that the model was trained on; certify takes none.
static int command_use(const char **value, int command) {
    Config settings = preset_config(TIGHT);
    Progress progress;
    Data data;
    apply_given(&settings, value, false);
    Model *m = checkpoint_load(settings.model, &data, &progress);
    bool told = given(value, AT(data)) || given(value, AT(val_data));
    const Config *from = told ? &settings : &m->config;
    const char *path = *from->val_data ? from->val_data : from->data; // validation is all it takes
    if (!told && command != EVAL) path = NULL;
    else data = load_data(*from->val_data ? "" : path, from->val_data, m->config.context, data);
    Run r = run_create(m, data, progress);
    if (command == SAMPLE) {
        write_sample(stdout, &r, &settings);
        return run_free(&r, 0);
    }
    certify(m, &r.certificate);
    if (path) printf("data\t%s\n", path);
    print_results(&r, path != NULL);
    print_norms(m);
    print_layers(m, &r.certificate, path ? r.seen : NULL);
    if (command == CERTIFY && path && settings.windows) print_predictions(&r, settings.windows);
    return run_free(&r, 0);
}

static const struct { const char *name, *help; int bit; int (*run)(const char **, int); }
commands[] = {
    {"train", "a model on any text, to the end, or on from a checkpoint", TRAIN, command_train},
    {"eval", "loss and accuracy on its own text or on --data, every norm", EVAL, command_use},
    {"certify", "its bound layer by layer, certified predictions", CERTIFY, command_use},
    {"sample", "text that it writes", SAMPLE, command_use}};

// usage: of one command, or of all four: what they take, with the defaults that they have.
static _Noreturn void usage(const char *only, int status) {
    FILE *file = status ? stderr : stdout;
    Config tight = preset_config(TIGHT), paper = preset_config(PAPER);
    fprintf(file, "lipgpt: a Lipschitz-constrained transformer. "
                  "Usage: ./lipgpt COMMAND [--key value]\n");
    for (int k = 0; k < 4; k++) {
        const char *group = NULL;
        if (only && strcmp(only, commands[k].name)) continue;
        if (commands[k].bit != TRAIN) *tight.data = *paper.data = 0; // the model's own, or none
        fprintf(file, "\n%s: %s\n", commands[k].name, commands[k].help);
        for (const Option *o = options; o < options + OPTIONS; o++) {
            char ours[PATH_SIZE], theirs[PATH_SIZE];
            if (o->type == HEADING) group = o->name;
            if (!(o->use & commands[k].bit)) continue;
            if (group) fprintf(file, "  %s\n", group);
            group = NULL;
            value_of(ours, o, &tight, 6), value_of(theirs, o, &paper, 6);
            fprintf(file, "    --%-17s %s", o->name, o->help);
            bool none = !*ours || (!(o->use & SAVED) && !strcmp(ours, "0"));
            if (!none) fprintf(file, " [%s", ours);
            if (!none && strcmp(ours, theirs)) fprintf(file, "; paper: %s", theirs);
            fprintf(file, none ? "\n" : "]\n");
        }
    }
    exit(fflush(file) != 0 ? 1 : status);
}

// all_written: the exit status, once all that was printed is written.
static int all_written(int status) {
    if (fflush(stdout) != 0 || ferror(stdout))
        die("make room", "cannot write to the standard output: %s", strerror(errno));
    return status;
}

int main(int argc, char **argv) {
    const char *value[OPTIONS] = {NULL};
    int k = 0;
    start_process();
    if (argc < 2) usage(NULL, 2);
    while (k < 4 && strcmp(argv[1], commands[k].name)) k++;
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) usage(k < 4 ? argv[1] : NULL, 0);
    if (k == 4)
        die_usage("see ./lipgpt --help", "%s is not a command: train, eval, certify or sample",
                  argv[1]);
    read_arguments(options, OPTIONS, commands[k].bit, argc - 2, argv + 2, value);
    return all_written(commands[k].run(value, commands[k].bit));
}
