// A multilayer perceptron on CIFAR-10 with an enforced Lipschitz constant: the paper's other half.
//
//   make mlp                                       fetch CIFAR-10, train, certify, attack
//   build/mlp train --preset paper                 the paper's network; build/mlp --help
//   build/mlp certify --model out/mlp.safetensors  accuracy that is proven, and under attack
//
// Linear layers with ReLU or MaxMin between, both of slope at most 1: so the product of the norms
// is a Lipschitz constant from images, of 3072 numbers, to logits, in RMS units as everywhere; from
// l2 to l2, as papers on robust images count, it is that times sqrt(10 / 3072). lipgpt.c is
// included whole, and search.c for its steps in a ball. A network is a Model of lipgpt whose table
// has W_IN and B_IN for every hidden layer, W_HEAD and B_OUT, and nothing else.

#define SEARCH_MAIN search_main
#include "search.c"

enum { SIDE = 32, PIXELS = 3 * SIDE * SIDE, RECORD = 1 + PIXELS, LABELS = 10, LAYERS = 16 };
#define CENTER 0.5 // ours, taken off all pixels
enum { RELU, LANES = 8, CHUNK = 50, STEPS = 100, RESTARTS = 5 }; // RELU: in GELU's place
typedef struct { Config c; int epochs, holdout; } Setup; // c first: lipgpt's options fit

// preset_setup: the paper's network and training, or ours (dev/mlp.md says what was tried).
static Setup preset_setup(Preset preset) {
    Setup n = {preset_config(PAPER), .epochs = 50};
    strcpy(n.c.data, "data/cifar-10-batches-bin");
    strcpy(n.c.out, "out/mlp.safetensors"), strcpy(n.c.model, n.c.out);
    n.c.preset = preset, n.c.blocks = 2, n.c.batch = 512, n.c.activation = (Activation)RELU;
    n.c.cap_in = n.c.cap_out = n.c.cap_head = 4.86; // 4.86^3 = 115
    n.c.lipschitz = 115, n.c.lr = 0.3;
    if (preset == PAPER) return n;
    n.c.activation = MAXMIN, n.c.bias = 1, n.c.width = 512, n.epochs = 40;
    n.c.batch = 1024, n.c.lipschitz = 10, n.c.lr = 0.5;
    return n;
}

// Options: these rows of lipgpt's table, and some of our own.
static const char shared[] = " preset lipschitz batch seed width bias optimizer lr momentum beta2 "
    "weight-decay share-head share-bias constraint cap cap-in cap-out cap-head spectral-decay ";
static const char *const phi_words[] = {"relu", "maxmin", NULL};
static Option table[48] = {
    TEXT("data", data, 1, TRAIN | EVAL | CERTIFY, "folder of CIFAR-10's binary batches"),
    TEXT("model", model, 1, EVAL | CERTIFY, "checkpoint to read"),
    TEXT("out", out, 1, TRAIN, "checkpoint to write"),
    INT("layers", blocks, 1, LAYERS, KEPT, "hidden ones"),
    {"activation", CHOICE, AT(activation), 0, 0, KEPT, "relu|maxmin (ours)", phi_words},
    {"epochs", INTEGER, offsetof(Setup, epochs), 1, 1e5, KEPT, "passes over the images", NULL},
    {"holdout", INTEGER, offsetof(Setup, holdout), 0, 1e6, KEPT,
     "last training images: measured on them, not on the test's", NULL},
};
static int rows = 7;

typedef struct { // what a thread needs for T images, forward and backward, for every layer
    float *x[LAYERS + 1], *dx[LAYERS + 1], *z[LAYERS + 1]; // (T, I) its input, (T, O) its output
    uint16_t *labels;                                      // (T)
} Space;

typedef struct {
    Setup n;
    Model *m;
    Space *spaces;             // one per thread
    unsigned char *images;     // (.., RECORD): the label, then 1024 red, green and blue numbers
    int trained, first, count; // images to train on, from 0; images to measure on, from `first`
    double *radii;             // (count), see measure
} Net;

// layer: the matrix, or the bias, of layer l.
static const Tensor *layer(const Net *net, bool bias, int l) {
    bool last = l == net->n.c.blocks;
    return tensor(net->m, bias ? last ? B_OUT : B_IN : last ? W_HEAD : W_IN, l);
}

static float *bias(const Net *net, float *base, int l) {
    return base && net->n.c.bias ? base + layer(net, true, l)->offset : NULL;
}

// net_create: the table of tensors, with equal shares for all layers (paper), and zero weights;
// spaces for T images.
static Net net_create(const Setup *n, int T) {
    Net net = {.n = *n, .m = allocate(1, sizeof(Model)),
               .spaces = allocate((size_t)omp_get_max_threads(), sizeof(Space))};
    Model *m = net.m;
    Config *c = &m->config;
    *c = n->c, c->heads = 1, c->vocabulary = LABELS;
    int L = c->blocks, d = c->width;
    double share = 1.0 / (L + 1);
    m->count = L * KINDS;
    m->tensors = allocate((size_t)m->count, sizeof(Tensor));
    m->brackets = allocate((size_t)m->count, sizeof(Bracket));
    for (int l = 0; l < L; l++) {
        add_tensor(m, W_IN, l, "weight", d, l ? d : PIXELS, l ? c->cap_out : c->cap_in, share);
        add_tensor(m, B_IN, l, "bias", c->bias, d, 0, c->share_bias);
    }
    add_tensor(m, W_HEAD, 0, "head.weight", LABELS, d, c->cap_head, share * c->share_head);
    add_tensor(m, B_OUT, 0, "head.bias", c->bias, LABELS, 0, c->share_bias);
    m->weights = floats(m->size), m->momentum = floats(m->size);
    m->second = c->optimizer == ADAMW ? floats(m->size) : NULL;
    for (Space *s = net.spaces; s < net.spaces + omp_get_max_threads(); s++) {
        s->labels = allocate((size_t)T, sizeof *s->labels);
        for (int l = 0; l <= L; l++) {
            size_t inputs = (size_t)T * (size_t)layer(&net, false, l)->cols;
            s->x[l] = floats(inputs), s->dx[l] = floats(inputs);
            s->z[l] = floats((size_t)T * (size_t)layer(&net, false, l)->rows);
        }
    }
    return net;
}

// net_init: matrices orthogonal, with norm min(1, cap), but for one of zeros: the first (paper), or
// ours, the last.
static void net_init(Net *net, Rng *rng) {
    for (Tensor *t = net->m->tensors; t < net->m->tensors + net->m->count; t++) {
        float *w = net->m->weights + t->offset;
        bool zero = net->n.c.preset == PAPER ? t->offset == 0 : t->kind == W_HEAD;
        if (t->size == 0 || zero || !is_matrix(t->kind)) continue;
        for (size_t i = 0; i < t->size; i++) w[i] = (float)rng_normal(rng);
        orthogonal_init(w, t->rows, t->cols, t->cap > 0 ? min(1, t->cap) : 1);
    }
}

// net_forward: from images in s->x[0] (T, PIXELS) to logits (T, LABELS), which it returns.
static float *net_forward(const Net *net, Space *s, int T) {
    for (int l = 0;; l++) {
        const Tensor *t = layer(net, false, l);
        float *w = net->m->weights, *z = s->z[l], *a = s->x[l + 1];
        linear_forward(z, s->x[l], w + t->offset, bias(net, w, l), T, t->cols, t->rows);
        if (l == net->n.c.blocks) return z;
        if (net->n.c.activation == MAXMIN) activation_forward(a, z, MAXMIN, T, t->rows);
        else
            for (int i = 0; i < T * t->rows; i++) a[i] = z[i] > 0 ? z[i] : 0;
    }
}

// net_backward: the gradient of the logits stands in their place; s->dx[0] becomes that of the
// images, and g is added to, unless it is NULL. ReLU's slope at 0 is 1/2, as in the paper's
// framework: with 0, a first layer of zeros would never move.
static void net_backward(const Net *net, Space *s, float *g, int T) {
    for (int l = net->n.c.blocks; l >= 0; l--) {
        const Tensor *t = layer(net, false, l);
        const float *z = l > 0 ? s->z[l - 1] : NULL;
        float *dx = memset(s->dx[l], 0, (size_t)T * (size_t)t->cols * sizeof(float));
        linear_backward(dx, g ? g + t->offset : NULL, bias(net, g, l),
                        l == net->n.c.blocks ? s->z[l] : s->dx[l + 1], s->x[l],
                        net->m->weights + t->offset, T, t->cols, t->rows);
        if (z && net->n.c.activation == MAXMIN) activation_backward(dx, z, MAXMIN, T, t->cols);
        else if (z)
            for (int i = 0; i < T * t->cols; i++) dx[i] *= (float)((z[i] > 0) + (z[i] >= 0)) / 2;
    }
}

// read_images: all of them; the test's come last.
#define FETCH "run prepare_data.py --cifar10"
static void read_images(Net *net) {
    size_t total = 0, size;
    for (int i = 0; i < 6; i++) {
        char path[PATH_SIZE + 32];
        snprintf(path, sizeof path, i < 5 ? "%s/data_batch_%d.bin" : "%s/test_batch.bin",
                 net->n.c.data, i + 1);
        unsigned char *bytes = read_file(path, &size, FETCH), *old = net->images;
        if (same_file(path, net->n.c.out)) die("give another --out", "%s is read, too", path);
        for (size_t j = 0; j < size; j += RECORD)
            if (bytes[j] >= LABELS || size % RECORD)
                die(FETCH, "%s is not a batch of CIFAR-10", path);
        net->images = allocate(total + size, 1);
        if (old) memcpy(net->images, old, total);
        memcpy(net->images + total, bytes, size), free(bytes), free(old);
        net->first = net->trained = (int)(total / RECORD) - net->n.holdout;
        total += size;
    }
    net->count = net->n.holdout ? net->n.holdout : (int)(size / RECORD);
    net->radii = doubles((size_t)net->count);
    if (net->trained < net->n.c.batch || net->count == 0)
        die(FETCH, "%s: %d images are left to train on", net->n.c.data, net->trained);
}

// load_image: image i becomes the one at t; ours: mirrored, if a coin says so.
static void load_image(const Net *net, Space *s, int t, int i, Rng *coin) {
    const unsigned char *image = net->images + (size_t)i * RECORD;
    bool ours = net->n.c.preset == TIGHT;
    int flip = ours && coin && rng_below(coin, 2) ? SIDE - 1 : 0; // column ^ 31 is 31 - column
    for (int p = 0; p < PIXELS; p++)
        s->x[0][t * PIXELS + p] = (float)(image[1 + (p ^ flip)] / 255.0 - (ours ? CENTER : 0));
    s->labels[t] = image[0];
}

// net_gradient: mean loss over a batch of images, by lanes as in batch_gradient; the first lane
// gets the gradient.     lanes (LANES, size)
static double net_gradient(const Net *net, const int *batch, uint64_t seed, float *lanes) {
    int n = net->n.c.batch;
    size_t size = net->m->size;
    double losses[LANES], loss = 0;
    #pragma omp parallel for schedule(dynamic, 1)
    for (int lane = 0; lane < LANES; lane++) {
        Space *s = &net->spaces[omp_get_thread_num()];
        Rng coin = {seed + (uint64_t)lane};
        int T = 0, correct = 0;
        for (int i = lane; i < n; i += LANES) load_image(net, s, T++, batch[i], &coin);
        float *g = memset(lanes + (size_t)lane * size, 0, size * sizeof(float));
        float *z = net_forward(net, s, T);
        losses[lane] = cross_entropy_forward(z, s->labels, &correct, T, LABELS);
        cross_entropy_backward(z, s->labels, n, T, LABELS);
        net_backward(net, s, g, T);
    }
    sum_lanes(lanes, LANES, size);
    for (int lane = 0; lane < LANES; lane++) loss += losses[lane] / n;
    return loss;
}

// net_certify: constants multiply, and neither activation adds anything.
static Certificate net_certify(const Net *net) {
    Certificate k = {.log10_trunk = 0};
    for_slices(net->m, measure_slice, NULL);
    for (int l = 0; l < net->n.c.blocks; l++) k.log10_trunk += log10(norm(net->m, W_IN, l));
    double error = COMPOSE_ERROR(net->n.c.blocks, 1, fabs(k.log10_trunk));
    if (isfinite(error)) k.log10_trunk += error; // a layer of zeros has a log of -infinity
    k.log10_sound = k.log10_trunk + log10(norm(net->m, W_HEAD, 0));
    if (isnan(k.log10_sound)) k.log10_trunk = k.log10_sound = INFINITY; // nothing is claimed
    return k;
}

// measure: mean cross entropy and accuracy; and how far, in l2, each image may move before its
// prediction can change, by (14) of the proof: the margin over the distance of two rows of the
// head, over the constant of the trunk. A radius of -1: it is wrong as it is.
static Score measure(const Net *net, const Certificate *k) {
    double *distances = head_distances(net->m), size = logit_size(net->m), loss = 0;
    double unit = sqrt(PIXELS) * (1 - 1e-9) / pow(10, k->log10_trunk);
    int right = 0, d = net->n.c.width;
    for (int i = 0; i < net->count; i++) {
        Space *s = net->spaces;
        int t = i % CHUNK, T = imin(CHUNK, net->count - i);
        for (int j = 0; j < T && t == 0; j++) load_image(net, s, j, net->first + i + j, NULL);
        if (t == 0) net_forward(net, s, T);
        float *z = s->z[net->n.c.blocks] + t * LABELS;
        double norm = rms(s->x[net->n.c.blocks] + t * d, (size_t)d);
        double room = margin(z, s->labels[t], distances, size * norm, LABELS);
        net->radii[i] = room < 0 ? -1 : room * unit;
        loss += cross_entropy_forward(z, s->labels + t, &right, 1, LABELS);
    }
    free(distances);
    return (Score){.loss = loss / net->count, .accuracy = (double)right / net->count};
}

static double certified(const Net *net, double radius) { // the share of images, once measured
    int beyond = 0;
    for (int i = 0; i < net->count; i++) beyond += net->radii[i] > radius;
    return (double)beyond / net->count;
}

// attack_images: projected gradient ascent on the lead of the best wrong logit, within eps, in RMS
// units, of images x (T, PIXELS) and within [0, 1]; from x, or with rng from anywhere in the ball.
// safe[t]: at every point that was visited the prediction was right.
static void attack_images(const Net *net, Space *s, const float *x, double eps, Rng *rng, int T,
                   bool *safe) {
    size_t n = (size_t)T * PIXELS;
    float *moved = s->x[0], low = net->n.c.preset == TIGHT ? (float)-CENTER : 0;
    for (size_t i = 0; rng && i < n; i++) s->dx[0][i] = (float)rng_normal(rng);
    if (rng) add_direction(moved, s->dx[0], eps * rng_uniform(rng), T, PIXELS);
    for (int step = 0; step <= STEPS; step++) {
        for (size_t i = 0; i < n; i++)
            moved[i] = moved[i] < low ? low : moved[i] > low + 1 ? low + 1 : moved[i];
        float *z = net_forward(net, s, T);
        for (int t = 0; t < T; t++, z += LABELS) {
            int label = s->labels[t], best = label == 0;
            for (int j = 0; j < LABELS; j++)
                if (j != label && z[j] > z[best]) best = j;
            safe[t] = (step == 0 || safe[t]) && z[label] > z[best];
            memset(z, 0, LABELS * sizeof *z);
            z[best] = 1, z[label] = -1;
        }
        net_backward(net, s, NULL, T);
        add_direction(moved, s->dx[0], 2.5 * eps / STEPS, T, PIXELS);
        project(moved, x, eps, T, PIXELS); // what is clipped next only comes nearer to x
    }
}

// under_attack: the share of images that no restart, within an l2 radius, makes wrong.
static double under_attack(const Net *net, double radius) {
    double eps = radius / sqrt(PIXELS) * (1 - ROUNDING);
    int held = 0;
    #pragma omp parallel for schedule(dynamic, 1) reduction(+ : held)
    for (int first = 0; first < net->count; first += CHUNK) {
        Space *s = &net->spaces[omp_get_thread_num()];
        int all = imin(CHUNK, net->count - first), standing[CHUNK], T = 0;
        bool safe[CHUNK];
        float *x = floats((size_t)CHUNK * PIXELS);
        Rng rng = {(uint64_t)first};
        for (int i = 0; i < all; i++)
            if (net->radii[first + i] >= 0) standing[T++] = first + i;
        for (int again = 0; again < RESTARTS && T > 0; again++) {
            for (int t = 0; t < T; t++) load_image(net, s, t, net->first + standing[t], NULL);
            memcpy(x, s->x[0], (size_t)T * PIXELS * sizeof(float));
            attack_images(net, s, x, eps, again ? &rng : NULL, T, safe);
            int left = 0;
            for (int t = 0; t < T; t++)
                if (safe[t]) standing[left++] = standing[t];
            T = left;
        }
        held += T, free(x);
    }
    return (double)held / net->count;
}

// save_net and load_net: a checkpoint like lipgpt's, with settings of its own.
static void save_net(const Net *net) {
    char *metadata, value[PATH_SIZE];
    size_t length;
    int count;
    FILE *text = open_memstream(&metadata, &length);
    fprintf(text, "\"format\":\"lipgpt mlp 1\"");
    for (const Option *o = table; o < table + rows; o++)
        if (o->use & SAVED)
            value_of(value, o, &net->n, 17), fprintf(text, ",\"%s\":\"%s\"", o->name, value);
    fclose(text);
    Array *arrays = arrays_of(net->m, &count);
    write_arrays(net->n.c.out, metadata, arrays, count);
    free(arrays), free(metadata);
}

static Net load_net(Setup n) {
    char source[PATH_SIZE + 8];
    File f = open_tensors(n.c.model);
    if (strcmp(metadata_of(&f, "format", NULL), "lipgpt mlp 1"))
        die("give a checkpoint that build/mlp wrote", "%s is of another format", f.path);
    snprintf(source, sizeof source, "%s: ", f.path);
    for (const Option *o = table; o < table + rows; o++)
        if (o->use & SAVED) set_option(&n, o, metadata_of(&f, o->name, NULL), source, 1);
    Net net = net_create(&n, CHUNK);
    if (f.size - f.data != (net.m->second ? 3 : 2) * net.m->size * sizeof(float))
        die(REFETCH, "%s has not the size that its settings want", f.path);
    load_arrays(&f, net.m);
    free(f.header), free(f.bytes);
    return net;
}

// to_budget: all caps times one factor, so that the bound at the caps is K.
static void to_budget(Config *c) {
    double bound = log(c->cap_in * c->cap_head) + (c->blocks - 1) * log(c->cap_out);
    bound += (c->blocks + 1) * log(bracket_width(c->width));
    double factor = exp((log(c->lipschitz) - bound) / (c->blocks + 1));
    if (factor < 1e-6) die_usage("ask for more", "--lipschitz %g is too small", c->lipschitz);
    c->cap_in *= factor, c->cap_out *= factor, c->cap_head *= factor;
}

// net_train: epochs of random order, each with a line on stderr.
static void net_train(Net *net, Rng *rng) {
    const Config *c = &net->n.c;
    int each = net->trained / c->batch, steps = each * net->n.epochs;
    int *order = allocate((size_t)net->trained, sizeof *order);
    float *lanes = floats(LANES * net->m->size);
    double began = seconds(), loss = 0;
    fprintf(stderr, "epoch\ttrain_loss\tloss\taccuracy\tcertified_36\tcertificate\t"
                    "largest_norm_over_cap\tlast_hidden_norm\tseconds\n");
    for (int i = 0; i < net->trained; i++) order[i] = i;
    for (int step = 0; step < steps; step++) {
        for (int i = net->trained - 1; i > 0 && step % each == 0; i--) {
            int j = (int)rng_below(rng, (size_t)i + 1), swap = order[i];
            order[i] = order[j], order[j] = swap;
        }
        loss += net_gradient(net, order + step % each * c->batch, rng_next(rng), lanes) / each;
        check_finite(net->m, lanes, "gradient", step + 1);
        optimizer_step(net->m, lanes, c->lr * (1 - (double)step / steps));
        check_finite(net->m, net->m->weights, "weight", step + 1);
        if ((step + 1) % each) continue;
        Certificate k = net_certify(net);
        check_promise(net->m, &k, step + 1, BUG);
        Score score = measure(net, &k);
        fprintf(stderr, "%d\t%.4f\t%.4f\t%.4f\t%.4f\t%s\t%.6f\t%.6f\t%.1f\n", (step + 1) / each,
                loss, score.loss, score.accuracy, certified(net, 36 / 255.0),
                show_bound(k.log10_sound, 6), norm_over_cap(net->m),
                norm(net->m, W_IN, c->blocks - 1), seconds() - began);
        loss = 0;
    }
    free(order), free(lanes);
}

// show: results as name<TAB>value, and the table of l2 radii.
static void show(const Net *net, bool attacked) {
    static const double radii[] = {36 / 255.0, 72 / 255.0, 108 / 255.0, 0.5, 1, 2};
    Certificate k = net_certify(net);
    Score score = measure(net, &k);
    printf("images\t%d %s\n", net->count, net->n.holdout ? "held out" : "test");
    printf("loss\t%.4f\naccuracy\t%.4f\n", score.loss, score.accuracy);
    printf("certificate\t%s\nl2_constant\t%s\n", show_bound(k.log10_sound, 6),
           show_bound(k.log10_sound + log10((double)LABELS / PIXELS) / 2, 6));
    if (!is_constrained(&net->m->config) || !within_caps(net->m))
        printf("note\tnot constrained: this is a measurement of these weights, not a guarantee\n");
    print_norms(net->m);
    printf("\nl2_radius\tcertified_accuracy%s\n", attacked ? "\taccuracy_under_attack" : "");
    for (int i = 0; i < 6; i++) {
        printf("%.4f\t%.4f", radii[i], certified(net, radii[i]));
        if (attacked) printf("\t%.4f", under_attack(net, radii[i]));
        printf("\n"), fflush(stdout);
    }
}

#ifndef MLP_MAIN
#define MLP_MAIN main
#endif
int MLP_MAIN(int argc, char **argv) {
    static const char *const commands_here[] = {"train", "eval", "certify"};
    const char *value[48] = {NULL};
    bool capped = false, budget = false;
    int command = 0;
    start_process();
    for (int i = 0; i < OPTIONS; i++) {
        char name[64];
        snprintf(name, sizeof name, " %s ", options[i].name);
        if (strstr(shared, name) && options[i].type != HEADING) table[rows++] = options[i];
    }
    while (command < 3 && (argc < 2 || strcmp(argv[1], commands_here[command]))) command++;
    if (command == 3 && (argc < 2 || (strcmp(argv[1], "--help") && strcmp(argv[1], "-h"))))
        die_usage("give train, eval or certify, or --help", "no command");
    if (command == 3) {
        for (int i = 0; i < rows; i++) printf("    --%-15s %s\n", table[i].name, table[i].help);
        return 0;
    }
    read_arguments(table, rows, 1 << command, argc - 2, argv + 2, value);
    Setup n = preset_setup(TIGHT);
    for (int pass = 0; pass < 2; pass++) // the preset first
        for (int i = 0; i < rows; i++) {
            if (!value[i] || (table[i].offset == AT(preset)) != (pass == 0)) continue;
            set_option(&n, &table[i], value[i], "--", 2);
            if (pass == 0) n = preset_setup(n.c.preset);
            if (table[i].offset == AT(cap)) n.c.cap_in = n.c.cap_out = n.c.cap_head = n.c.cap;
            capped = capped || table[i].use & BUDGETED;
            budget = budget || table[i].offset == AT(lipschitz);
        }
    if (n.c.preset == PAPER_145M) die_usage("take tight or paper", "145m is no perceptron");
    if (!budget && (capped || !holds_caps(&n.c))) n.c.lipschitz = 0;
    if (n.c.lipschitz > 0 && (capped || !holds_caps(&n.c)))
        die_usage("give one or the other", "--lipschitz chooses the caps, and holds them");
    if (n.c.lipschitz > 0) to_budget(&n.c);
    Rng rng = {(uint64_t)n.c.seed};
    int lane = (n.c.batch + LANES - 1) / LANES;
    Net net = command ? load_net(n) : net_create(&n, lane > CHUNK ? lane : CHUNK);
    read_images(&net);
    if (command == 0) {
        check_places((const char *const[]){n.c.out}, 0, 1);
        net_init(&net, &rng);
        net_train(&net, &rng);
        keep_old(n.c.out), save_net(&net);
    }
    show(&net, command == 2);
    return all_written(0);
}
