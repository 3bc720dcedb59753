// Golden numbers: everything that one training step computes, for whoever ports this program.
//
//   make golden       writes dev/golden/{paper,tight,concat}.safetensors
//   build/golden --model CHECKPOINT --data FILE --out FILE     the same of any checkpoint
//
// dev/porting.md lists what is in such a file; dev/port/ has two programs that compare themselves
// with it. Each quantity is computed by lipgpt.c's own functions, in double, and stands in the file
// in the order of computation, so the first one that differs says where a port went wrong. The
// tests include this file, run the small models again and compare.

#ifndef GOLDEN_FOR_TESTS
typedef float Single; // lipgpt.c makes every float a double: this is how to read others
#define LIPGPT_DOUBLE
#define main lipgpt_main
#include "../lipgpt.c"
#undef main
#endif

// ---------------------------------------------------------------------------------------------
// The small models. Sizes differ from each other, so that no transpose can hide; the text has 11
// distinct bytes. A few steps into the run no tensor is zero any more, and the last options make
// every cap act and every constant count.

static const char golden_text[] = "the heron rests at the lone shore\n"
                                  "at noon the stones are not so hot\n"
                                  "ten nets lean on the north stern\n"
                                  "one hare ran to the lost tent\n"
                                  "a loon on a rental sea sees no one\n";
enum { GOLDEN_STEPS = 6, GOLDEN_FILES = 3, GOLDEN_ARGUMENTS = 38 };
static const char *const golden_paths[] = {"dev/golden/tight.safetensors",
                                           "dev/golden/paper.safetensors",
                                           "dev/golden/concat.safetensors"};
static char *const golden_sizes[] = {"--width", "12", "--heads", "2", "--blocks", "2", "--context",
                                     "10", "--mlp-ratio", "2", "--batch", "2", "--steps", "20"};
enum { GOLDEN_SIZES = sizeof golden_sizes / sizeof *golden_sizes };
static char *const golden_arguments[][GOLDEN_ARGUMENTS - GOLDEN_SIZES] = {
    {"--preset", "tight", "--seed", "1", "--softmax-scale", "2", "--share-bias", "0.5"},
    {"--preset", "paper", "--seed", "2", "--weight-decay", "0.1"},
    {"--residual", "concat", "--value-ratio", "2", "--attention-blocks", "1", "--position-only",
     "1", "--lipschitz", "5", "--seed", "3", "--attention-factor", "0.75", "--share-bias", "0.5",
     "--margin", "0.5"}};

typedef struct {
    Model *m;
    Data data;
    Progress progress;
    const char *text; // the data, if it is short enough to be written into the file, or ""
} Golden;

// golden_data: the text above as load_data reads it.
static Data golden_data(void) {
    Data data = {.is_text = true, .count = strlen(golden_text), .vocabulary = 0};
    for (int b = 1; b < 256; b++)
        if (strchr(golden_text, b)) data.symbols[data.vocabulary++] = (unsigned char)b;
    uint16_t *tokens = allocate(data.count, sizeof *tokens);
    for (size_t i = 0; i < data.count; i++)
        tokens[i] = (uint16_t)id_of(&data, (unsigned char)golden_text[i]);
    data.train = allocate(2, sizeof(Span)), data.files = 1;
    data.train[0] = (Span){tokens, (size_t)(0.9 * (double)data.count)};
    return data;
}

// golden_start: a small model after GOLDEN_STEPS steps of training.
static Golden golden_start(int file) {
    const char *value[OPTIONS] = {NULL};
    char *arguments[GOLDEN_ARGUMENTS];
    int count = 0;
    memcpy(arguments, golden_sizes, sizeof golden_sizes);
    memcpy(arguments + GOLDEN_SIZES, golden_arguments[file], sizeof golden_arguments[file]);
    while (count < GOLDEN_ARGUMENTS && arguments[count]) count++;
    read_arguments(options, OPTIONS, TRAIN, count, arguments, value);
    Config c = new_settings(value);
    Golden g = {.data = golden_data(), .progress.rng.state = (uint64_t)c.seed, .text = golden_text};
    c.vocabulary = g.data.vocabulary;
    if (c.lipschitz > 0) apply_budget(&c);
    g.m = model_create(&c);
    model_init(g.m, &g.progress.rng);
    Workspace *spaces = workspaces_create(&c, omp_get_max_threads());
    float *lanes = floats((size_t)lanes_of(&c) * g.m->size);
    for (; g.progress.step < GOLDEN_STEPS; g.progress.step++)
        train_step(g.m, spaces, g.data.train, 1, &g.progress.rng, g.progress.step, lanes);
    workspaces_free(spaces, &c, omp_get_max_threads()), free(lanes);
    return g;
}

static void golden_free(Golden *g) { model_free(g->m), data_free(&g->data); }

// ---------------------------------------------------------------------------------------------
// The dump: named matrices, in the order of computation.

typedef struct { Array *arrays; int count, room; } Dump;

// add: a new matrix of zeros, to be filled.
__attribute__((format(printf, 4, 5)))
static float *add(Dump *d, int rows, int cols, const char *format, ...) {
    va_list list;
    if (d->count == d->room) {
        d->room = 2 * d->room + 64;
        d->arrays = realloc(d->arrays, (size_t)d->room * sizeof *d->arrays);
        if (!d->arrays) die("free some memory", "no room for %d names", d->room);
    }
    Array *a = &d->arrays[d->count++];
    *a = (Array){.rows = rows, .cols = cols, .values = floats((size_t)rows * (size_t)cols)};
    va_start(list, format);
    vsnprintf(a->name, sizeof a->name, format, list);
    va_end(list);
    return a->values;
}

static void dump_free(Dump *d) {
    for (int i = 0; i < d->count; i++) free(d->arrays[i].values);
    free(d->arrays);
}

// add_mat: a matrix that stands elsewhere, transposed or a part of something perhaps.
static void add_mat(Dump *d, Mat from, const char *name, int block) {
    float *to = add(d, from.rows, from.cols, "blocks.%d.%s", block, name);
    for (int i = 0; i < from.rows; i++)
        for (int j = 0; j < from.cols; j++) to[(size_t)i * from.cols + j] = *at(from, i, j);
}

// add_tensors: one matrix per tensor, from numbers laid out like the weights.
static void add_tensors(Dump *d, const Model *m, const char *prefix, const float *numbers) {
    for (const Tensor *t = m->tensors; t < m->tensors + m->count && numbers; t++)
        if (t->size)
            memcpy(add(d, t->rows, t->cols, "%s%s", prefix, t->name), numbers + t->offset,
                   t->size * sizeof(float));
}

// add_initial: the tensors with which the run began, but for those that began at zero.
static void add_initial(Dump *d, const Config *c) {
    Model *m = model_create(c);
    Rng rng = {(uint64_t)c->seed};
    model_init(m, &rng);
    for (const Tensor *t = m->tensors; t < m->tensors + m->count; t++) {
        const float *w = m->weights + t->offset;
        if (t->size && rms(w, t->size) > 0)
            memcpy(add(d, t->rows, t->cols, "initial.%s", t->name), w, t->size * sizeof(float));
    }
    model_free(m);
}

// add_attention: scores, with their bias, and what softmax made of them; (H T, T), head under head,
// 0 above the diagonals.
static void add_attention(Dump *d, const Model *m, const BlockState *b, int block, int T) {
    const Config *c = &m->config;
    int H = c->heads, qk = score_width(c), dh = qk / H;
    Mat qkv = mat(b->qkv, T, 2 * qk + value_width(c));
    const float *bias = values(m, m->weights, POSITION, block);
    float *scores = add(d, H * T, T, "blocks.%d.scores", block);
    float *A = add(d, H * T, T, "blocks.%d.A", block);
    for (int h = 0; h < H; h++) {
        Mat q = part(qkv, 0, h * dh, T, dh), k = part(qkv, 0, qk + h * dh, T, dh);
        float *own = floats((size_t)T * (size_t)T);
        matmul(mat(own, T, T), q, transposed(k), (float)score_scale_of(c), false, LOWER_OUT);
        for (int i = 0; i < T; i++)
            for (int j = 0; j <= i; j++) {
                size_t row = (size_t)h * T + (size_t)i, to = row * (size_t)T + (size_t)j;
                scores[to] = own[i * T + j] + (bias ? bias[h * c->context + (i - j)] : 0);
                A[to] = b->A[to];
            }
        free(own);
    }
}

// add_forward: what forward_tokens left in the workspace for one window of T tokens.
static void add_forward(Dump *d, const Model *m, Workspace *s, int T) {
    const Config *c = &m->config;
    int width = c->width, F = width * c->mlp_ratio, qk = score_width(c), n = value_width(c);
    for (int l = 0; l < c->blocks; l++) {
        BlockState *b = &s->blocks[l];
        Mat qkv = mat(b->qkv, T, 2 * qk + n);
        bool attention = values(m, m->weights, W_O, l);
        add_mat(d, mat(b->x, T, width), "x", l);
        if (attention && qk) add_mat(d, part(qkv, 0, 0, T, qk), "q", l);
        if (attention && qk) add_mat(d, part(qkv, 0, qk, T, qk), "k", l);
        if (attention) add_mat(d, part(qkv, 0, 2 * qk, T, n), "v", l);
        if (attention) add_attention(d, m, b, l, T);
        if (attention) add_mat(d, mat(b->y, T, n), "y", l);
        add_mat(d, mat(b->mid, T, width), "mid", l);
        add_mat(d, mat(b->z, T, F), "z", l);
        activation_forward(s->a, b->z, c->activation, T, F);
        add_mat(d, mat(s->a, T, F), "a", l);
    }
    memcpy(add(d, T, width, "last"), s->last, (size_t)T * width * sizeof(float));
}

// certified_radius: how far all embeddings may move before the trunk's output can leave `room`, by
// bisection; they may leave the ball of radius R0, too, as in certified_share.
static double certified_radius_of(const Model *m, Certificate *k, double room) {
    double radius = k->radius, low = 0, high = room / pow(10, k->log10_trunk);
    for (int i = 0; i < 100; i++) {
        double eps = (low + high) / 2;
        compose(m, radius + eps, k);
        if (room > pow(10, k->log10_trunk) * eps) low = eps;
        else high = eps;
    }
    compose(m, radius, k);
    return low;
}

// add_bounds: every norm from both sides, the whole first, then the heads; both bounds, layer by
// layer; and of one window's logits (T, V) the certified radius of the largest one.
static void add_bounds(Dump *d, const Model *m, const float *logits, int T) {
    int L = m->config.blocks, V = m->config.vocabulary;
    Certificate k;
    certify(m, &k);
    for (const Tensor *t = m->tensors; t < m->tensors + m->count; t++) {
        int heads = has_heads(t->kind) ? m->config.heads : 0;
        if (!t->size) continue;
        float *norms = add(d, 1 + heads, 2, "norm.%s", t->name);
        for (int h = -1; h < heads; h++) {
            Bracket b = h < 0 ? t->norm : t->heads[h];
            norms[2 * (h + 1)] = (float)b.lower, norms[2 * (h + 1) + 1] = (float)b.upper;
        }
    }
    float *a = add(d, 1, 2 * L + 1, "activation_bound");
    float *sound = add(d, 1, 2 * L + 2, "certificate.log10");
    float *paper = add(d, 1, 2 * L + 2, "paper_bound.log10");
    a[0] = (float)k.radius, paper[0] = (float)log10(norm(m, EMBED, 0));
    for (int i = 0; i < 2 * L; i++) {
        a[i + 1] = (float)k.layers[i].activation;
        sound[i + 1] = (float)k.layers[i].log10_sound;
        paper[i + 1] = (float)k.layers[i].log10_paper;
    }
    sound[2 * L + 1] = (float)k.log10_sound, paper[2 * L + 1] = (float)k.log10_paper;
    if (V <= 4096) { // (V, V) distances
        float *radii = add(d, 1, T, "certified_radius");
        double *distances = head_distances(m);
        for (int t = 0; t < T; t++) {
            const float *z = logits + (size_t)t * V;
            int best = 0;
            for (int v = 1; v < V; v++)
                if (z[v] > z[best]) best = v;
            double room = margin(z, best, distances, 0, V); // -1: two are equally large
            radii[t] = room > 0 ? (float)certified_radius_of(m, &k, room) : 0;
        }
        free(distances);
    }
}

// update_slice: the direction of one slice's update, before learning rate, share and unit.
static void update_slice(const Model *m, const Slice *slice, void *context) {
    const Tensor *t = slice->t;
    if (!has_own_cap(t, slice->head)) return;
    const float *momentum = m->momentum + slice->offset;
    float *update = (float *)context + slice->offset;
    if (is_matrix(t->kind)) {
        Scratch s = scratch_create(slice->rows, t->cols);
        widen(s.x, momentum, slice->rows, t->cols, 1);
        orthogonalize(&s);
        narrow(update, s.x, slice->rows, t->cols, 1);
        scratch_free(&s);
    } else { // a step of length 1 from zero, taken back
        muon_rows(t, update, momentum, 1);
        scale_by(update, t->size, -1);
    }
}

// add_soft_cap: the strengths of the soft cap of a step of norm u: one, or one for every 23 %.
static void add_soft_cap(Dump *d, const Config *c, const Tensor *t, double u) {
    double strengths[64], cap = t->cap * (1 - ROUNDING);
    double top = (t->cap * max(0, 1 - c->weight_decay * u) + u) * (1 + ROUNDING);
    int count = 0;
    for (; top > cap && count < 64; top = max(cap, 0.77 * top))
        strengths[count++] = soft_cap_strength(top, max(cap, 0.77 * top));
    if (!count) return;
    float *to = add(d, 1, count, "soft_cap.%s", t->name);
    for (int i = 0; i < count; i++) to[i] = (float)strengths[i];
}

// add_step: what the optimizer makes of a gradient.
static void add_step(Dump *d, Model *m, const float *gradient, double eta) {
    const Config *c = &m->config;
    float *update = floats(m->size);
    *add(d, 1, 1, "eta") = (float)eta;
    optimizer_step(m, gradient, eta);
    add_tensors(d, m, "momentum_after.", m->momentum);
    add_tensors(d, m, "second_after.", m->second);
    if (c->optimizer == MUON) {
        for_slices(m, update_slice, update);
        add_tensors(d, m, "update.", update);
        for (const Tensor *t = m->tensors; t < m->tensors + m->count; t++)
            if (t->size) *add(d, 1, 1, "u.%s", t->name) = (float)(eta * t->share);
        for (const Tensor *t = m->tensors; t < m->tensors + m->count; t++)
            if (t->size && is_matrix(t->kind) && t->cap > 0 && c->constraint == SOFT)
                add_soft_cap(d, c, t, eta * t->share);
    }
    add_tensors(d, m, "after.", m->weights);
    free(update);
}

// golden_dump: the next step of a run, which it takes. Norms, bounds and radii are those of the
// weights before the step; activations are those of the first window.
static Dump golden_dump(Golden *g) {
    Model *m = g->m;
    const Config *c = &m->config;
    int T = c->context, V = c->vocabulary, correct = 0;
    Dump d = {0}, bounds = {0}; // which need the weights before the step, but stand last
    Workspace *spaces = workspaces_create(c, omp_get_max_threads());
    float *lanes = floats((size_t)lanes_of(c) * m->size);
    const uint16_t **windows = allocate((size_t)c->batch, sizeof *windows);
    if (*g->text) add_initial(&d, c);
    float *tokens = add(&d, c->batch, T, "batch.tokens");
    float *targets = add(&d, c->batch, T, "batch.targets");
    for (int i = 0; i < c->batch; i++) {
        windows[i] = draw_window(g->data.train, g->data.files, T, &g->progress.rng);
        for (int t = 0; t < T; t++)
            tokens[i * T + t] = windows[i][t], targets[i * T + t] = windows[i][t + 1];
    }
    add_tensors(&d, m, "", m->weights);
    add_tensors(&d, m, "momentum.", m->momentum);
    add_tensors(&d, m, "second.", m->second);
    forward_tokens(m, spaces, windows[0], T);
    add_forward(&d, m, spaces, T);
    float *logits = add(&d, T, V, "logits");
    float *losses = add(&d, 1, T, "loss"); // -log p of each target; the gradient is of the batch
    for (int t = 0; t < T; t++) {
        logits_forward(m, spaces, t, 1);
        memcpy(logits + (size_t)t * V, spaces->logits, (size_t)V * sizeof(float));
        losses[t] = (float)cross_entropy_forward(spaces->logits, windows[0] + t + 1, &correct, 1,
                                                 V);
    }
    double mean = batch_gradient(m, spaces, windows, lanes);
    *add(&d, 1, 1, "batch.loss") = (float)mean;
    add_tensors(&d, m, "gradient.", lanes);
    add_bounds(&bounds, m, logits, T);
    add_step(&d, m, lanes, c->lr * (1 - (double)g->progress.step / c->steps));
    for (const Array *a = bounds.arrays; a < bounds.arrays + bounds.count; a++)
        memcpy(add(&d, a->rows, a->cols, "%s", a->name), a->values,
               (size_t)a->rows * (size_t)a->cols * sizeof(float));
    dump_free(&bounds), free(windows), free(lanes);
    workspaces_free(spaces, c, omp_get_max_threads());
    return d;
}

// ---------------------------------------------------------------------------------------------
// Files.
#ifndef GOLDEN_FOR_TESTS

// quote: text within a string of JSON.
static void quote(FILE *file, const char *text) {
    for (const char *q = text; *q; q++)
        fprintf(file, (unsigned char)*q < 32 || *q == '"' || *q == '\\' ? "\\u%04x" : "%c", *q);
}

// golden_write: takes the step and writes it. Settings, step and generator are those before it.
static void golden_write(Golden *g, const char *path) {
    char *metadata, value[PATH_SIZE];
    size_t length;
    FILE *file = open_memstream(&metadata, &length);
    if (!file) die("free some memory", "cannot write %s: %s", path, strerror(errno));
    for (const Option *o = options; o < options + OPTIONS; o++) {
        if (!(o->use & SAVED)) continue;
        value_of(value, o, &g->m->config, 17);
        fprintf(file, "\"%s\":\"", o->name), quote(file, value), fprintf(file, "\",");
    }
    fprintf(file, "\"format\":\"lipgpt golden 1\",\"step\":\"%d\",\"rng\":\"%llu\",\"text\":\"",
            g->progress.step, (unsigned long long)g->progress.rng.state);
    quote(file, g->text);
    fprintf(file, "\",\"vocabulary_size\":\"%d\",\"vocabulary\":\"", g->data.vocabulary);
    for (int i = 0; i < g->data.vocabulary && g->data.is_text; i++)
        fprintf(file, "%02x", g->data.symbols[i]);
    fprintf(file, "\""), fclose(file);
    Dump d = golden_dump(g);
    write_arrays(path, metadata, d.arrays, d.count);
    printf("%s\t%d matrices\n", path, d.count);
    dump_free(&d), free(metadata);
}

// to_double: a checkpoint of floats becomes one of doubles: so do dtypes and offsets.
static void to_double(const char *from, const char *to) {
    File f = open_tensors(from);
    char *header;
    size_t length, range[2], count = (f.size - f.data) / sizeof(Single);
    FILE *text = open_memstream(&header, &length), *file = open_file(to);
    if (!text) die("free some memory", "cannot write %s: %s", to, strerror(errno));
    for (const char *p = f.header; *p;) {
        if (!strncmp(p, "\"F32\"", 5)) p += fprintf(text, "\"F64\"");
        else if (*p == '[' && p[-1] == ':' && !strncmp(p - 15, "\"data_offsets\"", 14) &&
                 read_sizes(p, range) == 2) {
            fprintf(text, "[%zu,%zu]", 2 * range[0], 2 * range[1]);
            p = strchr(p, ']') + 1;
        } else fputc(*p++, text);
    }
    fprintf(text, "       "), fclose(text);
    uint64_t padded = length / 8 * 8;
    fwrite(&padded, 8, 1, file), fwrite(header, 1, padded, file);
    for (size_t i = 0; i < count; i++) {
        Single number;
        memcpy(&number, f.bytes + f.data + i * sizeof number, sizeof number);
        fwrite(&(double){number}, sizeof(double), 1, file);
    }
    finish_file(file, to), fclose(file);
    free(header), free(f.header), free(f.bytes);
}

// of_checkpoint: the next step of a checkpoint's run on its data.
static void of_checkpoint(const char *model, const char *path, const char *out) {
    char copy[PATH_SIZE + 32];
    Data known;
    Golden g = {.text = ""};
    File f = open_tensors(model);
    check_places((const char *const[]){model, path, out}, 2, 3);
    snprintf(copy, sizeof copy, "%s.%ld.f64", out, (long)getpid());
    bool single = strstr(f.header, "\"F32\"") != NULL;
    free(f.header), free(f.bytes);
    if (single) to_double(model, copy);
    g.m = checkpoint_load(single ? copy : model, &known, &g.progress);
    if (single) remove(copy);
    g.data = load_data(path, "", g.m->config.context, known);
    golden_write(&g, out);
    golden_free(&g);
}

int main(int argc, char **argv) {
    static const Option table[] = {TEXT("model", model, 1, TRAIN, "checkpoint to read"),
                                   TEXT("data", data, 1, TRAIN, "its text or token shard"),
                                   TEXT("out", out, 1, TRAIN, "file to write")};
    const char *value[3] = {NULL};
    read_arguments(table, 3, TRAIN, argc - 1, argv + 1, value);
    if (argc == 1) {
        for (int i = 0; i < GOLDEN_FILES; i++) {
            Golden g = golden_start(i);
            golden_write(&g, golden_paths[i]);
            golden_free(&g);
        }
        return 0;
    }
    if (!value[0] || !value[1] || !value[2])
        die_usage("or nothing at all", "--model, --data and --out are all needed");
    of_checkpoint(value[0], value[1], value[2]);
    return all_written(0);
}
#endif
