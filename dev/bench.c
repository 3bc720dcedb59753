// Speed of lipgpt as shares of what this machine can do.     make bench  [ARGS="--batch 64"]
//
// Everything is measured in one run: first the peak, the rate of independent fused multiply-adds in
// registers, then each kernel and the whole training step against it. Shares travel between
// machines and survive a noisy one; seconds do not. Every figure is a median of several
// repetitions. If OpenBLAS can be loaded (Debian: apt install libopenblas0), the matrix products
// stand against it.
//
// Columns: what, GFLOP/s, share of peak, and for products the ratio to OpenBLAS on the same shape.
// Flops are those that are needed: masked triangles and mirrored halves count 0.

#define main lipgpt_main
#include "../lipgpt.c"
#undef main
#include <dlfcn.h>
#include <sys/resource.h>

typedef void Sgemm(int, int, int, int, int, int, float, const float *, int, const float *, int,
                   float, float *, int);
static Sgemm *openblas;

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

// peak_once: GFLOP/s of one thread that does nothing but multiply and add in registers.
static double peak_once(void) {
    enum { CHAINS = 12, ROUNDS = 4000000 };
    Vec sum[CHAINS], factor, term;
    volatile float seed = 1e-9f;
    for (int l = 0; l < WIDTH; l++)
        factor[l] = 1 - seed, term[l] = seed;
    for (int i = 0; i < CHAINS; i++)
        sum[i] = term * (float)i;
    double start = seconds();
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < CHAINS; i++)
            sum[i] = sum[i] * factor + term;
    double elapsed = seconds() - start;
    for (int i = 1; i < CHAINS; i++)
        sum[0] += sum[i];
    seed = sum[0][0];
    return 2.0 * CHAINS * WIDTH * ROUNDS / elapsed / 1e9;
}

static double peak(int threads) { // of all threads together
    double rates[9];
    for (int i = 0; i < 9; i++) {
        double sum = 0;
        #pragma omp parallel num_threads(threads) reduction(+ : sum)
        sum += peak_once();
        rates[i] = sum;
    }
    return median(rates, 9);
}

static void line(const char *what, double gflops, double of) {
    printf("%-44s %8.1f %7.1f %%\n", what, gflops, 100 * gflops / of);
}

static void fill_random(float *x, size_t n) {
    static Rng rng;
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(rng_uniform(&rng) - 0.5);
}

// product: C (M, N) = A B by one thread, in a form of a linear layer; returns ours / OpenBLAS.
static double product(int M, int N, int K, int form, double of, double *share) {
    static const char *const forms[] = {"x W^T", "dy W", "dy^T x"};
    size_t most = 1024 * 1024;
    static float *a, *b, *c;
    if (!a)
        fill_random(a = floats(most), most), fill_random(b = floats(most), most), c = floats(most);
    double ours[15], theirs[15], flops = 2.0 * M * N * K;
    int calls = 1 + (int)(3e7 / flops);
    Mat left = form == 2 ? transposed(mat(a, K, M)) : mat(a, M, K);
    Mat right = form == 0 ? transposed(mat(b, N, K)) : mat(b, K, N);
    for (int i = 0; i < 15; i++) {
        double start = seconds();
        for (int k = 0; k < calls; k++)
            matmul(mat(c, M, N), left, right, 1, form == 2, FULL);
        ours[i] = flops * calls / (seconds() - start) / 1e9;
        start = seconds();
        for (int k = 0; openblas && k < calls; k++)
            openblas(101, form == 2 ? 112 : 111, form == 0 ? 112 : 111, M, N, K, 1, a,
                     form == 2 ? M : K, b, form == 0 ? K : N, form == 2, c, N);
        theirs[i] = flops * calls / (seconds() - start) / 1e9;
    }
    double mine = median(ours, 15), ratio = openblas ? mine / median(theirs, 15) : 0;
    char what[64];
    snprintf(what, sizeof what, "matmul %-6s (%d, %d, %d)", forms[form], M, N, K);
    printf("%-44s %8.1f %7.1f %%", what, mine, 100 * mine / of);
    printf(openblas ? "  %.2fx OpenBLAS\n" : "\n", ratio);
    *share += mine / of;
    return ratio;
}

static void products(double of) {
    static const int shapes[][2] = {{256, 256}, {768, 256}, {1024, 256}, {256, 1024}, {65, 256}};
    enum { SHAPES = sizeof shapes / sizeof *shapes };
    double share = 0, lowest = INFINITY;
    for (int i = 0; i < SHAPES; i++) { // linear layers of the model: outputs, inputs; 256 tokens
        int O = shapes[i][0], I = shapes[i][1];
        lowest = min(lowest, product(256, O, I, 0, of, &share));
        lowest = min(lowest, product(256, I, O, 1, of, &share));
        lowest = min(lowest, product(O, I, 256, 2, of, &share));
    }
    printf("matmul, mean over these %44.1f %%", 100 * share / (3 * SHAPES));
    printf(openblas ? "  at least %.2fx OpenBLAS\n" : "\n", lowest);
}

// Layers that are not a single product.
static void layers(const Run *r, double of) {
    const Config *c = &r->m->config;
    int T = c->context, d = c->width, H = c->heads, F = d * c->mlp_ratio;
    double forward_time[9], backward_time[9], needed = 2.0 * T * (T + 1) * d; // two half products
    Workspace *s = r->spaces;
    BlockState *b = s->blocks;
    fill_random(b->qkv, (size_t)T * 3 * d), fill_random(s->dy, (size_t)T * d);
    fill_random(b->z, (size_t)T * F);
    for (int i = 0; i < 9; i++) {
        double start = seconds();
        for (int k = 0; k < 10; k++)
            attention_forward(b->y, b->A, b->qkv, NULL, 1.0 / 64, T, T, d, d, H);
        forward_time[i] = (seconds() - start) / 10, start = seconds();
        for (int k = 0; k < 10; k++)
            attention_backward(s->dqkv, s->dA, NULL, s->dy, b->A, b->qkv, 1.0 / 64, T, T, d, d, H);
        backward_time[i] = (seconds() - start) / 10;
    }
    line("attention forward, with softmax", needed / median(forward_time, 9) / 1e9, of);
    line("attention backward", 2 * needed / median(backward_time, 9) / 1e9, of);
    for (int i = 0; i < 9; i++) {
        double start = seconds();
        for (int k = 0; k < 10; k++)
            activation_forward(s->a, b->z, GELU, T, F);
        forward_time[i] = (seconds() - start) / 10;
    }
    printf("%-44s %8.2f ns per unit\n", "GELU", 1e9 * median(forward_time, 9) / T / F);
}

// Constraints: what each adds to a step of one matrix, by one thread, beside Muon's update of it
// and the SVD that would do as well. The share is of all that a step of 64 x 256 tokens does with
// the matrix: its products, forward and backward, the update and the constraint. Times are the
// shortest of several, because a busy machine would distort ratios of such short ones.
typedef void Svd(const char *, const int *, const int *, float *, const int *, float *, float *,
                 const int *, float *, const int *, float *, const int *, int *, int *, size_t);

// svd_once: seconds of LAPACK's divide and conquer, of W (rows, cols), with all vectors.
static double svd_once(Svd *svd, const float *W, int rows, int cols) {
    int n = imin(rows, cols), k = rows + cols - n, size = -1, error = 0;
    size_t nn = (size_t)n * (size_t)n, nk = (size_t)n * (size_t)k;
    float *a = floats(nk), *sigma = floats((size_t)n), *u = floats(nn), *v = floats(nk), best;
    int *integers = allocate(8 * (size_t)n, sizeof *integers);
    svd("S", &n, &k, a, &n, sigma, u, &n, v, &n, &best, &size, integers, &error, 1);
    size = (int)best;
    float *work = floats((size_t)size);
    memcpy(a, W, nk * sizeof *a);
    double start = seconds();
    svd("S", &n, &k, a, &n, sigma, u, &n, v, &n, work, &size, integers, &error, 1);
    double elapsed = seconds() - start;
    free(a), free(sigma), free(u), free(v), free(integers), free(work);
    return elapsed;
}

static double shortest(const double *values, int n) {
    double least = values[0];
    for (int i = 1; i < n; i++) least = min(least, values[i]);
    return least;
}

static void cost(const char *what, double time, double muon, double products) {
    double rest = time == muon ? 0 : muon;
    printf("  %-42s %8.2f ms %6.2fx %5.1f %%\n", what, 1e3 * time, time / muon,
           100 * time / (products + rest + time));
}

static void constraints(Svd *svd, const char *library) {
    static const int shapes[][2] = {{256, 256}, {1024, 256}, {768, 3072}};
    enum { TOKENS = 256, REPEATS = 9 };
    double times[REPEATS];
    printf("constraints, one thread: time of a step, against Muon's update, share of the step\n");
    for (int shape = 0; shape < 3; shape++) {
        int O = shapes[shape][0], I = shapes[shape][1];
        size_t n = (size_t)O * (size_t)I;
        float *W = floats(n), *m = floats(n), *x = floats((size_t)TOKENS * (size_t)I);
        float *y = floats((size_t)TOKENS * (size_t)O);
        double unit = sqrt((double)O / I), products, muon;
        Scratch s = scratch_create(O, I);
        Config c = preset_config(PAPER);
        fill_random(W, n), fill_random(m, n), fill_random(x, (size_t)TOKENS * (size_t)I);
        scale_by(W, n, 1.1 * unit / spectral_norm(W, O, I, NULL).upper); // a tenth above its cap
        for (int i = 0; i < REPEATS; i++) {
            double start = seconds();
            linear_forward(y, x, W, NULL, TOKENS, I, O);
            linear_backward(x, m, NULL, y, x, W, TOKENS, I, O);
            times[i] = seconds() - start;
        }
        products = 64 * shortest(times, REPEATS);
        fill_random(m, n);
        for (int i = 0; i < REPEATS; i++) {
            double start = seconds();
            muon_matrix(&s, W, m, O, I, 0.1, 0);
            times[i] = seconds() - start;
        }
        muon = shortest(times, REPEATS);
        printf("  (%d, %d)\n", O, I);
        cost("Muon's update", muon, muon, products);
        for (Constraint k = SOFT; k <= DECAY; k++) {
            c.constraint = k;
            for (int i = 0; i < REPEATS; i++) {
                widen(s.x, W, O, I, 1 / unit);
                double start = seconds();
                constrain(&s, &c, 1.1, 1);
                times[i] = seconds() - start;
            }
            cost(constraint_words[k], shortest(times, REPEATS), muon, products);
        }
        if (svd) cost(library, svd_once(svd, W, O, I), muon, products);
        free(W), free(m), free(x), free(y), scratch_free(&s);
    }
}

// flops_of_step: needed by forward and backward of a batch, and by the optimizer.
static double flops_of_sequences(const Model *m) {
    const Config *c = &m->config;
    double T = c->context, weights = 0;
    for (int i = 0; i < m->count; i++)
        weights += is_matrix(m->tensors[i].kind) ? (double)m->tensors[i].size : 0;
    return c->batch * (6 * T * weights + c->blocks * 6.0 * T * (T + 1) * c->width);
}

static double flops_of_optimizer(const Model *m) {
    double sum = 0;
    for (int i = 0; i < m->count; i++) {
        const Tensor *t = &m->tensors[i];
        if (t->size == 0) continue;
        double rows = t->rows / t->slices, n = min(rows, t->cols), k = max(rows, t->cols);
        if (!is_matrix(t->kind)) continue;
        double cap = m->config.constraint == SOFT ? 2 * 3 * n * n * k // 2 x 1.5 products
                     : n * n * k + GRAM_STEPS * n * n * n;            // halves, of spectral_norm
        // six steps of Newton-Schulz: two halves and a product
        sum += t->slices * (6 * (3 * n * n * k + n * n * n) + cap);
    }
    return sum;
}

// steps: the median seconds of whole training steps and of their optimizer; *cpu is the processors'
// time of one, which other programs on the machine lengthen less.
static double steps(Run *r, int count, double *optimizer_seconds, double *cpu) {
    const Config *c = &r->m->config;
    double whole[16], optimizer[16];
    const uint16_t **windows = allocate((size_t)c->batch, sizeof *windows);
    for (int i = 0; i <= count; i++) {
        for (int j = 0; j < c->batch; j++)
            windows[j] = draw_window(r->data.train, 1, c->context, &r->progress.rng);
        double start = seconds();
        if (i == 1) *cpu = (double)clock();
        batch_gradient(r->m, r->spaces, windows, r->lanes);
        double middle = seconds();
        optimizer_step(r->m, r->lanes, 0.01);
        if (i) // the first warms up
            whole[i - 1] = seconds() - start, optimizer[i - 1] = seconds() - middle;
    }
    free(windows);
    *cpu = ((double)clock() - *cpu) / CLOCKS_PER_SEC / count;
    *optimizer_seconds = median(optimizer, count);
    return median(whole, count);
}

int main(int argc, char **argv) {
    const char *value[OPTIONS] = {NULL};
    read_arguments(options, OPTIONS, TRAIN, argc - 1, argv + 1, value);
    for (int i = 0; i < OPTIONS; i++) // the ports have the paper's network, too
        if (!strcmp(options[i].name, "preset") && !value[i]) value[i] = "paper";
    Config c = new_settings(value);
    void *library = dlopen("libopenblas.so.0", RTLD_NOW);
    void (*set_threads)(int) = NULL;
    if (library) {
        *(void **)&openblas = dlsym(library, "cblas_sgemm");
        *(void **)&set_threads = dlsym(library, "openblas_set_num_threads");
        if (set_threads)
            set_threads(1);
    }
    const char *svd_of = openblas ? "SVD, sgesdd of OpenBLAS" : "SVD, sgesdd of liblapack.so.3";
    void *lapack = openblas ? library : dlopen("liblapack.so.3", RTLD_NOW);
    Svd *svd = NULL;
    if (lapack) *(void **)&svd = dlsym(lapack, "sgesdd_");
    int threads = omp_get_max_threads();
    double one = peak(1), all = peak(threads);
    printf("%-44s %8s %9s\n", "", "GFLOP/s", "of peak");
    line("FMA peak, 1 thread", one, one);
    if (!openblas)
        printf("no OpenBLAS to compare with: install libopenblas0 (Debian) or put libopenblas.so.0 "
               "on the library path\n");
    bool only_steps = c.vocabulary > 0; // as it was given, or is in the preset
    if (!only_steps) products(one);

    enum { TOKENS = 20000 };
    uint16_t *tokens = allocate(TOKENS, sizeof *tokens);
    Data data = {.train = allocate(2, sizeof(Span)), .files = 1, .count = TOKENS, .is_text = true};
    data.train[0] = (Span){tokens, TOKENS};
    Rng rng = {1};
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = (uint16_t)rng_below(&rng, 65);
    if (!only_steps) c.vocabulary = 65;
    Run r = run_create(model_create(&c), data, (Progress){0});
    r.lanes = floats((size_t)lanes_of(&c) * r.m->size);
    model_init(r.m, &rng);
    if (!only_steps) layers(&r, one), constraints(svd, svd_of);

    double optimizer, cpu, whole = 0, previous = 0, needed = flops_of_sequences(r.m);
    char what[64];
    int t = only_steps ? threads : 1;
    for (; t <= threads; t = t < threads && 2 * t > threads ? threads : 2 * t) {
#ifdef _OPENMP
        omp_set_num_threads(t);
#endif
        whole = steps(&r, only_steps ? 1 : 5, &optimizer, &cpu);
        snprintf(what, sizeof what, "training step %d x %d, %d thread%s", c.batch, c.context, t,
                 t > 1 ? "s" : "");
        double rate = (needed + flops_of_optimizer(r.m)) / whole / 1e9;
        double peak = t == 1 ? one : all * t / threads;
        printf("%-44s %8.1f %7.1f %%  %.3f s, %.0f tokens/s", what, rate, 100 * rate / peak, whole,
               c.batch * c.context / whole);
        printf(previous > 0 ? ", %.2fx of one thread\n" : "\n", previous / whole);
        previous = previous > 0 ? previous : whole;
        rate = (needed + flops_of_optimizer(r.m)) / cpu / 1e9;
        snprintf(what, sizeof what, "  of its %.3f s of processor time", cpu);
        line(what, rate, one);
        snprintf(what, sizeof what, "  its optimizer: %.1f %% of step", 100 * optimizer / whole);
        line(what, flops_of_optimizer(r.m) / optimizer / 1e9, peak);
        if (t == threads)
            break;
    }
    double times[5];
    for (int i = 0; i < 5; i++) {
        double start = seconds();
        certify(r.m, &r.certificate);
        times[i] = seconds() - start;
    }
    printf("%-44s %8.3f s, %d threads\n", "certificate, both bounds", median(times, 5), threads);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("%-44s %8.1f MB\n", "peak memory of this run", (double)usage.ru_maxrss / 1024);
    return run_free(&r, 0);
}
