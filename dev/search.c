// The search from below: how much of its certificate does a model use?
//
//   make search && build/search --model out/lipgpt.safetensors --data data/tinyshakespeare.txt
//       [--search-steps N] [--pair FILE] [--windows N] [--seed N]
//
// A certificate that nobody can violate may still be loose, so this program looks for the worst
// pair of inputs: whatever |f(x) - f(y)| / |x - y| it finds is a lower end of the true constant
// (lower_bound). With --data it also attacks predictions, all embeddings of a window at once,
// beside the accuracy that is certified. lipgpt.c is included whole; its tests include this file.

#define main lipgpt_main
#include "../lipgpt.c"
#undef main

// largest_token: the largest RMS norm of a token of x (T, n), and which (unless NULL).
static double largest_token(const float *x, int T, int n, int *which) {
    double largest = -1;
    for (int t = 0; t < T; t++) {
        double norm = rms(x + (size_t)t * n, (size_t)n);
        if (norm > largest && which) *which = t;
        largest = max(norm, largest);
    }
    return largest;
}

// project: every token of x (T, d) into the ball |x - center| <= radius; center NULL is the origin.
static void project(float *x, const float *center, double radius, int T, int d) {
    for (int t = 0; t < T; t++, x += d, center = center ? center + d : NULL) {
        double sum = 0;
        for (int i = 0; i < d; i++) sum += square((double)x[i] - (center ? (double)center[i] : 0));
        double scale = radius / sqrt(sum / d);
        if (!(scale < 1)) continue;
        for (int i = 0; i < d; i++) {
            double c = center ? (double)center[i] : 0;
            x[i] = (float)(c + ((double)x[i] - c) * scale);
        }
    }
}

// add_direction: every token of x moves by `step` RMS units along its own gradient.
static void add_direction(float *x, const float *gradient, double step, int T, int d) {
    for (int t = 0; t < T; t++, x += d, gradient += d) {
        double norm = rms(gradient, (size_t)d);
        if (!(norm > 0)) continue;
        for (int i = 0; i < d; i++) x[i] += (float)(step / norm * (double)gradient[i]);
    }
}

// run: s->logits (T, V) from embeddings x (T, d), T <= LOGIT_ROWS.
static void run(const Model *m, Workspace *s, const float *x, int T) {
    memcpy(s->blocks[0].x, x, (size_t)T * m->config.width * sizeof(float));
    forward(m, s, T);
    logits_forward(m, s, 0, T);
}

// pull_back: to = J^T u at x, for a direction u (V) of the logits at token t. The same for the
// weights is added to g, unless that is NULL.
static void pull_back(const Model *m, Workspace *s, const float *x, const float *u, int t, int T,
                      float *g, float *to) {
    size_t V = (size_t)m->config.vocabulary;
    run(m, s, x, T);
    memset(s->logits, 0, (size_t)T * V * sizeof(float));
    memcpy(s->logits + (size_t)t * V, u, V * sizeof(float));
    logits_backward(m, s, g, 0, T);
    backward(m, s, g, T);
    memcpy(to, s->dx, (size_t)T * m->config.width * sizeof(float));
}

// pair_ratio: |f(x) - f(y)| / |x - y|; u (T, V) becomes f(y) - f(x), and t the token that moved
// most. What float rounding may have added to the response is taken off, so that it cannot pass for
// a violation.
static double pair_ratio(const Model *m, Workspace *s, const float *x, const float *y, int T,
                         float *u, int *t) {
    int d = m->config.width, V = m->config.vocabulary;
    size_t n = (size_t)T * d, N = (size_t)T * V;
    double rounding = (sizeof(float) == 8 ? 1e-15 : 4e-7) * (4 * m->config.blocks + 2);
    float *shift = floats(n);
    run(m, s, y, T);
    memcpy(u, s->logits, N * sizeof(float));
    run(m, s, x, T);
    double size = largest_token(u, T, V, NULL);
    for (size_t i = 0; i < N; i++) u[i] -= s->logits[i];
    for (size_t i = 0; i < n; i++) shift[i] = y[i] - x[i];
    double response = largest_token(u, T, V, t), distance = largest_token(shift, T, d, NULL);
    free(shift);
    return distance > 0 ? (response - rounding * size) / distance : 0;
}

// worst_pair: gradient ascent from x (T, d) on |f(x) - f(y)| / |x - y| inside |.| <= radius;
// returns the best ratio and leaves that pair in x and y. u is the response of the token that moved
// most; y - x follows J^T u at y, token by token (the best linear response under the max norm), and
// x follows the gradient of the ratio itself, J(y)^T u - J(x)^T u.
static double worst_pair(const Model *m, Workspace *s, float *x, float *y, double radius, int T,
                         int steps, Rng *rng) {
    int d = m->config.width, V = m->config.vocabulary, t = 0;
    size_t n = (size_t)T * d;
    float *px = floats(n), *py = floats(n), *gx = floats(n), *gy = floats(n);
    float *u = floats((size_t)T * V);
    double best = 0;
    memcpy(px, x, n * sizeof(float));
    for (size_t i = 0; i < n; i++) gy[i] = (float)rng_normal(rng);
    for (int step = 0; step < steps; step++) {
        project(px, NULL, radius, T, d);
        memcpy(py, px, n * sizeof(float));
        add_direction(py, gy, 0.02 * radius, T, d);
        project(py, NULL, radius, T, d);
        double ratio = pair_ratio(m, s, px, py, T, u, &t);
        if (ratio > best) {
            best = ratio;
            memcpy(x, px, n * sizeof(float)), memcpy(y, py, n * sizeof(float));
        }
        pull_back(m, s, px, u + (size_t)t * V, t, T, NULL, gx);
        pull_back(m, s, py, u + (size_t)t * V, t, T, NULL, gy);
        for (size_t i = 0; i < n; i++) gx[i] = gy[i] - gx[i];
        double norm = largest_token(gx, T, d, NULL);
        double pace = 0.5 * radius * (1 - (double)step / steps);
        if (norm > 0)
            for (size_t i = 0; i < n; i++) px[i] += (float)(pace / norm * (double)gx[i]);
    }
    free(px), free(py), free(gx), free(gy), free(u);
    return best;
}

// attack: projected gradient ascent on the loss, all embeddings of the window at once, within eps
// of x (T, d). safe[t] stays true while position t is predicted rightly at every point visited.
static void attack(const Model *m, Workspace *s, const float *x, const uint16_t *targets,
                   double eps, int steps, int T, bool *safe) {
    int d = m->config.width, V = m->config.vocabulary;
    float *moved = floats((size_t)T * d);
    memcpy(moved, x, (size_t)T * d * sizeof(float));
    for (int step = 0; step <= steps; step++) {
        memcpy(s->blocks[0].x, moved, (size_t)T * d * sizeof(float));
        forward(m, s, T);
        for (int first = 0; first < T; first += LOGIT_ROWS) {
            int rows = imin(LOGIT_ROWS, T - first);
            logits_forward(m, s, first, rows);
            for (int t = first; t < first + rows; t++) {
                int correct = 0;
                cross_entropy_forward(s->logits + (size_t)(t - first) * V, targets + t, &correct, 1,
                                      V);
                safe[t] = safe[t] && correct;
            }
            cross_entropy_backward(s->logits, targets + first, T, rows, V);
            logits_backward(m, s, NULL, first, rows);
        }
        backward(m, s, NULL, T);
        add_direction(moved, s->dx, eps / 4, T, d);
        project(moved, x, eps, T, d);
    }
    free(moved);
}

typedef struct {
    char model[PATH_SIZE], data[PATH_SIZE], pair[PATH_SIZE];
    int search_steps, windows, seed;
} Settings;

#define SEARCH 1
#define FIELD(field) offsetof(Settings, field)
static const Option search_options[] = {
    {"model", STRING, FIELD(model), 1, PATH_SIZE - 1, SEARCH, "checkpoint", NULL},
    {"data", STRING, FIELD(data), 1, PATH_SIZE - 1, SEARCH, "text or token shard to attack", NULL},
    {"pair", STRING, FIELD(pair), 1, PATH_SIZE - 1, SEARCH, "file for the worst pair", NULL},
    {"search-steps", INTEGER, FIELD(search_steps), 0, 1e9, SEARCH, "of the search; 0 = none", NULL},
    {"windows", INTEGER, FIELD(windows), 0, 1e9, SEARCH, "to certify and attack", NULL},
    {"seed", INTEGER, FIELD(seed), 0, INT_MAX, SEARCH, "of all random draws", NULL},
};
enum { SEARCH_OPTIONS = sizeof search_options / sizeof *search_options };

// save_pair: x and y (T, d) as the tensors of a file, so that the claim can be checked.
static void save_pair(const char *path, float *x, float *y, int T, int d) {
    Array arrays[] = {{"x", T, d, x, 0, 0}, {"y", T, d, y, 0, 0}};
    write_arrays(path, "\"what\":\"two embedded inputs of lower_bound\"", arrays, 2);
    printf("pair\t%s\n", path);
}

// print_search: the worst pair over restarts, from windows of the data and from random inputs.
static void print_search(const Run *r, const Settings *settings) {
    enum { RESTARTS = 8 };
    const Model *m = r->m;
    int T = imin(m->config.context, 64), d = m->config.width, winner = 0; // short windows suffice
    size_t n = (size_t)T * d;
    Span split = r->data.validation;
    float *x = floats(n * RESTARTS), *y = floats(n * RESTARTS);
    double best[RESTARTS], radius = r->certificate.radius;
    #pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < RESTARTS; i++) {
        Rng rng = {(uint64_t)settings->seed * RESTARTS + (uint64_t)i};
        float *from = x + n * (size_t)i;
        for (size_t j = 0; j < n; j++) from[j] = (float)(radius * rng_normal(&rng));
        if (*settings->data && i % 2 && split.count > (size_t)T)
            embedding_forward(from, values(m, m->weights, EMBED, 0),
                              split.tokens + rng_below(&rng, split.count - (size_t)T), T, d);
        best[i] = worst_pair(m, &r->spaces[omp_get_thread_num()], from, y + n * (size_t)i,
                             radius / (1 + ROUNDING), T, settings->search_steps, &rng);
    }
    for (int i = 1; i < RESTARTS; i++) winner = best[i] > best[winner] ? i : winner;
    double K = pow(10, r->certificate.log10_sound); // 0 of the zero function, and met
    printf("lower_bound\t%.6g\ncertificate_over_lower_bound\t%.4g\n", best[winner],
           K > 0 ? K / best[winner] : 1);
    if (*settings->pair)
        save_pair(settings->pair, x + n * (size_t)winner, y + n * (size_t)winner, T, d);
    free(x), free(y);
}

// surviving_share: of positions that are predicted rightly at every point that an attack visits.
static double surviving_share(const Run *r, Span split, int windows, double eps) {
    const Model *m = r->m;
    int d = m->config.width, context = m->config.context, positions = 0, held = 0;
    #pragma omp parallel for schedule(dynamic, 1) reduction(+ : positions, held)
    for (int i = 0; i < windows; i++) {
        Workspace *s = &r->spaces[omp_get_thread_num()];
        Span window = window_of(split, FULL_SPLIT, context, i, windows);
        int T = (int)window.count;
        float *x = floats((size_t)T * d);
        bool *safe = memset(allocate((size_t)T, sizeof *safe), 1, (size_t)T);
        embedding_forward(x, values(m, m->weights, EMBED, 0), window.tokens, T, d);
        attack(m, s, x, window.tokens + 1, eps, eps > 0 ? 20 : 0, T, safe);
        for (int t = 0; t < T; t++) held += safe[t];
        positions += T;
        free(x), free(safe);
    }
    return (double)held / positions;
}

static void print_attack(Run *r, int windows) {
    double *distances = head_distances(r->m);
    Span split = r->data.validation;
    windows = imin(windows, window_count(split, FULL_SPLIT, r->m->config.context));
    printf("\neps\tcertified_accuracy\taccuracy_under_attack\t(%d windows)\n", windows);
    for (int i = 0; i < LEVELS; i++)
        printf("%g\t%.4f\t%.4f\n", levels[i],
               certified_share(r->m, r->spaces, split, windows, distances, levels[i]),
               surviving_share(r, split, windows, levels[i]));
    free(distances);
}

#ifndef SEARCH_MAIN
#define SEARCH_MAIN main
#endif
int SEARCH_MAIN(int argc, char **argv) {
    const char *value[SEARCH_OPTIONS] = {NULL};
    Settings settings = {.model = "out/lipgpt.safetensors", .search_steps = 30, .windows = 16};
    Data data;
    Progress progress;
    start_process();
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        printf("search: the worst pair of inputs, and an attack. Usage: search [--key value]\n");
        for (int i = 0; i < SEARCH_OPTIONS; i++)
            printf("    --%-13s %s\n", search_options[i].name, search_options[i].help);
        return 0;
    }
    read_arguments(search_options, SEARCH_OPTIONS, SEARCH, argc - 1, argv + 1, value);
    for (int i = 0; i < SEARCH_OPTIONS; i++)
        if (value[i]) set_option(&settings, &search_options[i], value[i], "--", 2);
    if (*settings.pair && !settings.search_steps)
        die_usage("give it some", "--pair %s wants a search, but --search-steps is 0",
                  settings.pair);
    Model *m = checkpoint_load(settings.model, &data, &progress);
    if (*settings.pair)
        check_places((const char *const[]){settings.model, settings.data, settings.pair}, 2, 3);
    if (*settings.data) data = load_data(settings.data, "", m->config.context, data);
    Run r = run_create(m, data, progress);
    certify(m, &r.certificate);
    if (*settings.data) printf("data\t%s\n", settings.data);
    print_results(&r, *settings.data);
    if (settings.search_steps) print_search(&r, &settings);
    if (*settings.data && settings.windows && m->config.vocabulary <= MOST_SYMBOLS)
        print_attack(&r, settings.windows);
    else if (*settings.data && settings.windows)
        printf("\nnote\tmore than %d symbols: predictions are left out\n", MOST_SYMBOLS);
    return all_written(run_free(&r, 0));
}
