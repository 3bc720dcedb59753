// A multilayer perceptron on CIFAR-10 with an enforced Lipschitz constant: the paper's other half.
//
//   make mlp                                       fetch CIFAR-10, train, certify, attack
//   build/mlp train --preset paper                 the paper's network; see build/mlp --help
//   build/mlp certify --model out/mlp.safetensors  accuracy that is proven, and under attack
//
// Layers of linear_forward with ReLU or MaxMin between, both of slope at most 1: so the product of
// the weights' norms is a Lipschitz constant from images, their 3072 numbers as one vector, to the
// ten logits, in RMS units as everywhere. From l2 to l2 it is that times sqrt(10 / 3072), which is
// how the literature on robust images counts. Where an image sits costs nothing: neither biases nor
// a constant taken off the pixels, nor what the loss is or which images it sees.
//
// lipgpt.c is included whole, and so is search.c, for its steps and its ball: products, layers,
// Muon, caps, norms, options and checkpoints are theirs. A network is a Model of lipgpt, whose
// table of tensors has W_IN and B_IN for every hidden layer, W_HEAD and B_OUT, and nothing else.

#define SEARCH_MAIN search_main
#include "search.c"

enum { SIDE = 32, PIXELS = 3 * SIDE * SIDE, RECORD = 1 + PIXELS, CLASSES = 10, MOST_LAYERS = 16 };
enum { CHUNK = 50 }; // images that are measured at once
typedef enum { RELU, MAX_MIN } Bend;
typedef enum { FIRST, HEAD } Zero; // the layer that is zero at the start

typedef struct {
    Config base; // the first field: lipgpt's options have the same offsets
    Bend bend;
    Zero zero;
    int layers, epochs, mirror, holdout, attack_steps, restarts;
    double center, margin;
} Setup;

// preset_of: the paper's network and training, or ours (dev/mlp.md says what was tried).
static Setup preset_of(Preset preset) {
    Setup n = {.base = preset_config(PAPER), .layers = 2, .epochs = 50, .attack_steps = 100,
               .restarts = 5};
    Config *c = &n.base;
    strcpy(c->data, "data/cifar-10-batches-bin"), strcpy(c->log, "out/mlp.tsv");
    strcpy(c->out, "out/mlp.safetensors"), strcpy(c->model, c->out);
    c->preset = preset, c->batch = 512, c->temperature = 1, c->lr = 1, c->lipschitz = 115;
    c->cap_in = c->cap_out = c->cap_head = 4.86; // 4.86^3 = 115
    if (preset == PAPER) return n;
    n.bend = MAX_MIN, n.zero = HEAD, n.center = 0.5, n.mirror = 1;
    c->width = 512, c->bias = 1, c->lr = 0.5, c->lipschitz = 8.75;
    return n;
}

#define INT_OF(name, field, low, high, use, help) \
    {name, INTEGER, offsetof(Setup, field), low, high, use, help, NULL}
#define REAL_OF(name, field, high, help) \
    {name, REAL, offsetof(Setup, field), 0, high, KEPT, help, NULL}
#define WORD_OF(name, field, help) \
    {name, CHOICE, offsetof(Setup, field), 0, 0, KEPT, help, field##_words}
static const char *const bend_words[] = {"relu", "maxmin", NULL};
static const char *const zero_words[] = {"first", "head", NULL};
static const Option setup_options[] = {
    TEXT("data", data, 1, TRAIN | EVAL | CERTIFY, "folder of CIFAR-10's binary batches"),
    TEXT("model", model, 1, EVAL | CERTIFY, "checkpoint to read"),
    TEXT("out", out, 1, TRAIN, "checkpoint to write"),
    TEXT("log", log, 1, TRAIN, "table of epochs to write"),
    WORD("preset", preset, "tight (ours) or paper (to the letter)"),
    NUM("lipschitz", lipschitz, 0, 1e300, KEPT, "K never exceeds it: caps are scaled; 0 = none"),
    INT_OF("epochs", epochs, 1, 1e5, KEPT, "passes over the training images"),
    INT("batch", batch, 1, 1 << 16, KEPT, "images of a step"),
    INT("seed", seed, 0, INT_MAX, KEPT, "of all random draws"),
    INT_OF("holdout", holdout, 0, 49999, KEPT, "last training images, measured on; 0 = test set"),
    INT_OF("attack-steps", attack_steps, 1, 1e6, CERTIFY, "of gradient ascent"),
    INT_OF("restarts", restarts, 0, 1e6, CERTIFY, "of the attack; 0 = no attack"),
    INT_OF("layers", layers, 1, MOST_LAYERS, KEPT, "hidden ones"),
    INT("width", width, 2, 1 << 14, KEPT, "of a hidden layer"),
    WORD_OF("activation", bend, "relu|maxmin (ours)"),
    FLAG("bias", bias, "biases (ours)"),
    WORD_OF("zero", zero, "first|head: the layer that is zero at the start"),
    REAL_OF("center", center, 1, "taken off all pixels, which are 0 to 1 (ours)"),
    INT_OF("mirror", mirror, 0, 1, KEPT, "half of the training images (ours)"),
    NUM("temperature", temperature, 1e-3, 1e6, KEPT, "the loss sees logits times it (ours)"),
    REAL_OF("margin", margin, 1e6, "by which it wants the right logit to lead (ours)"),
    WORD("optimizer", optimizer, "muon|adamw (which wants --lr 0.001)"),
    NUM("lr", lr, 0, 1e6, KEPT, "learning rate at the start; falls linearly to 0"),
    NUM("weight-decay", weight_decay, 0, 1e3, KEPT, "times u; AdamW: times the learning rate"),
    NUM("share-head", share_head, 0, 1e6, KEPT, "factor on the step of the last layer (ours)"),
    NUM("share-bias", share_bias, 0, 1e6, KEPT, "step of biases (ours)"),
    WORD("constraint", constraint, "soft|hard|normalize|stiefel|hammer|decay (the last hold none)"),
    NUM("cap", cap, 0, 1e6, TRAIN | BUDGETED, "of all layers: RMS->RMS norm; 0 = none"),
    NUM("cap-in", cap_in, 0, 1e6, KEPT | BUDGETED, "of the first layer"),
    NUM("cap-out", cap_out, 0, 1e6, KEPT | BUDGETED, "of the other hidden layers"),
    NUM("cap-head", cap_head, 0, 1e6, KEPT | BUDGETED, "of the last layer"),
    NUM("spectral-decay", spectral_decay, 0, 1, KEPT, "of --constraint decay: taken off the top"),
};
enum { SETUP_OPTIONS = sizeof setup_options / sizeof *setup_options };

typedef struct { // what a thread needs for T images, forward and backward, for every layer
    float *x[MOST_LAYERS + 1], *dx[MOST_LAYERS + 1]; // (T, I) its input
    float *z[MOST_LAYERS + 1];                       // (T, O) its output before the activation
    float *memory;                                   // of all of them
} Space;

typedef struct {            // a network, and the images that it is measured on
    Setup n;
    Model *m;
    Space *spaces;          // one per thread
    unsigned char *images;  // (count, RECORD): the label, then 1024 red, green and blue numbers
    int count;
    double *radii;          // (count), see measure
} Net;

static int width_of(const Net *net, int l) { // of the input of layer l
    return l == 0 ? PIXELS : l <= net->n.layers ? net->n.base.width : CLASSES;
}

// matrix_of and bias_of: of layer l, in the weights or in a gradient.
static float *matrix_of(const Net *net, float *base, int l) {
    return values(net->m, base, l < net->n.layers ? W_IN : W_HEAD, l);
}
static float *bias_of(const Net *net, float *base, int l) {
    return values(net->m, base, l < net->n.layers ? B_IN : B_OUT, l);
}

// net_create: the table of tensors, with equal shares for all layers (paper), and zero weights;
// spaces for T images.
static Net net_create(const Setup *n, int T) {
    Net net = {.n = *n, .m = allocate(1, sizeof(Model))};
    Model *m = net.m;
    Config *c = &m->config;
    double share = 1.0 / (n->layers + 1);
    *c = n->base, c->heads = 1, c->blocks = n->layers, c->vocabulary = CLASSES;
    m->count = c->blocks * KINDS;
    m->tensors = allocate((size_t)m->count, sizeof(Tensor));
    m->brackets = allocate((size_t)m->count, sizeof(Bracket));
    for (int l = 0; l < n->layers; l++) {
        add_tensor(m, W_IN, l, "weight", c->width, width_of(&net, l), l ? c->cap_out : c->cap_in,
                   share);
        add_tensor(m, B_IN, l, "bias", c->bias, c->width, 0, c->share_bias);
    }
    add_tensor(m, W_HEAD, 0, "head.weight", CLASSES, c->width, c->cap_head, share * c->share_head);
    add_tensor(m, B_OUT, 0, "head.bias", c->bias, CLASSES, 0, c->share_bias);
    m->weights = floats(m->size), m->momentum = floats(m->size);
    m->second = c->optimizer == ADAMW ? floats(m->size) : NULL;
    net.spaces = allocate((size_t)omp_get_max_threads(), sizeof(Space));
    for (Space *s = net.spaces; s < net.spaces + omp_get_max_threads(); s++) {
        size_t each = 2 * PIXELS + 3 * (size_t)n->layers * (size_t)c->width + CLASSES;
        float *next = s->memory = floats((size_t)T * each);
        for (int l = 0; l <= n->layers; l++) {
            s->x[l] = next, s->dx[l] = next + (size_t)T * width_of(&net, l);
            s->z[l] = s->dx[l] + (size_t)T * width_of(&net, l);
            next = s->z[l] + (size_t)T * width_of(&net, l + 1);
        }
    }
    return net;
}

static int net_free(Net *net) {
    for (int i = 0; i < omp_get_max_threads(); i++) free(net->spaces[i].memory);
    free(net->spaces), free(net->images), free(net->radii), model_free(net->m);
    return 0;
}

// net_init: all matrices but one orthogonal, with norm min(1, cap).
static void net_init(Net *net, Rng *rng) {
    for (int l = 0; l <= net->n.layers; l++) {
        const Tensor *t = tensor(net->m, l < net->n.layers ? W_IN : W_HEAD, l);
        float *w = net->m->weights + t->offset;
        if (l == (net->n.zero == FIRST ? 0 : net->n.layers)) continue;
        for (size_t i = 0; i < t->size; i++) w[i] = (float)rng_normal(rng);
        orthogonal_init(w, t->rows, t->cols, t->cap > 0 ? min(1, t->cap) : 1);
    }
}

// net_forward: from images in s->x[0] (T, PIXELS) to logits (T, CLASSES), which it returns.
static float *net_forward(const Net *net, Space *s, int T) {
    float *w = net->m->weights;
    for (int l = 0;; l++) {
        int I = width_of(net, l), O = width_of(net, l + 1);
        linear_forward(s->z[l], s->x[l], matrix_of(net, w, l), bias_of(net, w, l), T, I, O);
        if (l == net->n.layers) return s->z[l];
        if (net->n.bend == MAX_MIN) activation_forward(s->x[l + 1], s->z[l], MAXMIN, T, O);
        for (size_t i = 0; i < (size_t)T * O && net->n.bend == RELU; i++)
            s->x[l + 1][i] = s->z[l][i] > 0 ? s->z[l][i] : 0;
    }
}

// net_backward: the gradient of the logits stands in their place; s->dx[0] becomes that of the
// images, and g is added to, unless it is NULL. ReLU's slope at 0 is 1/2, as in the paper's
// framework: with 0, a first layer of zeros would never move.
static void net_backward(const Net *net, Space *s, float *g, int T) {
    float *dz = s->z[net->n.layers];
    for (int l = net->n.layers; l >= 0; dz = s->dx[l--]) {
        int I = width_of(net, l), O = width_of(net, l + 1);
        memset(s->dx[l], 0, (size_t)T * I * sizeof(float));
        linear_backward(s->dx[l], matrix_of(net, g, l), bias_of(net, g, l), dz, s->x[l],
                        matrix_of(net, net->m->weights, l), T, I, O);
        if (l == 0) return;
        const float *z = s->z[l - 1];
        if (net->n.bend == MAX_MIN) activation_backward(s->dx[l], z, MAXMIN, T, I);
        for (size_t i = 0; i < (size_t)T * I && net->n.bend == RELU; i++)
            s->dx[l][i] *= z[i] > 0 ? 1 : z[i] < 0 ? 0 : (float)0.5;
    }
}

// net_loss: summed cross entropy of T images in s->x[0], of temperature (logits - margin at the
// label); with a gradient g, also backward, for the mean over `count` images.
static double net_loss(const Net *net, Space *s, const uint16_t *labels, int T, float *g,
                       double count) {
    float *z = net_forward(net, s, T);
    int correct = 0;
    for (int t = 0; t < T; t++) z[t * CLASSES + labels[t]] -= (float)net->n.margin;
    scale_by(z, (size_t)T * CLASSES, net->n.base.temperature);
    double loss = cross_entropy_forward(z, labels, &correct, T, CLASSES);
    if (!g) return loss;
    cross_entropy_backward(z, labels, count, T, CLASSES);
    scale_by(z, (size_t)T * CLASSES, net->n.base.temperature);
    net_backward(net, s, g, T);
    return loss;
}

// read_images: of the training files those to train on, or the last ones, held out; or the test's.
static unsigned char *read_images(const Setup *n, bool to_train, int *count) {
    int files = to_train || n->holdout ? 5 : 1;
    unsigned char *bytes[5];
    size_t sizes[5], total = 0, held = (size_t)n->holdout * RECORD;
    for (int i = 0; i < files; i++) {
        char path[PATH_SIZE + 32];
        snprintf(path, sizeof path, files > 1 ? "%s/data_batch_%d.bin" : "%s/test_batch.bin",
                 n->base.data, i + 1);
        bytes[i] = read_file(path, &sizes[i], "run prepare_data.py --cifar10");
        for (size_t j = 0; j < sizes[i]; j += RECORD)
            if (bytes[i][j] >= CLASSES || sizes[i] % RECORD)
                die("run prepare_data.py --cifar10", "%s is no batch of CIFAR-10", path);
        total += sizes[i];
    }
    unsigned char *all = allocate(total, 1), *next = all;
    for (int i = 0; i < files; next += sizes[i], i++)
        memcpy(next, bytes[i], sizes[i]), free(bytes[i]);
    if (total < held + (to_train ? (size_t)n->base.batch * RECORD : 1))
        die_usage("hold out fewer, or give a smaller --batch", "%s has no more than %zu images",
                  n->base.data, total / RECORD);
    if (held && !to_train) memmove(all, all + total - held, held);
    *count = (int)((to_train ? total - held : held ? held : total) / RECORD);
    return all;
}

// load_image: into x (PIXELS), by a coin mirrored, if there is one; returns its label.
static uint16_t load_image(const Net *net, float *x, const unsigned char *image, Rng *coin) {
    int flip = coin && net->n.mirror && rng_below(coin, 2) ? SIDE - 1 : 0;
    for (int i = 0; i < PIXELS; i++) // SIDE is a power of 2: column ^ 31 is 31 - column
        x[i] = (float)(image[1 + (i ^ flip)] / 255.0 - net->n.center);
    return image[0];
}

// net_gradient: mean loss over a batch, images[order[0]] and so on, by lanes as in batch_gradient;
// the first lane gets the gradient.     lanes (lanes_of, size)
static double net_gradient(const Net *net, const unsigned char *images, const int *order,
                           uint64_t seed, float *lanes) {
    int batch = net->n.base.batch, count = lanes_of(&net->n.base);
    size_t size = net->m->size;
    double *losses = doubles((size_t)count), loss = 0;
    #pragma omp parallel for schedule(dynamic, 1)
    for (int lane = 0; lane < count; lane++) {
        Space *s = &net->spaces[omp_get_thread_num()];
        Rng rng = {seed + (uint64_t)lane};
        uint16_t *labels = allocate((size_t)batch, sizeof *labels);
        int T = 0;
        for (int i = lane; i < batch; i += count, T++)
            labels[T] = load_image(net, s->x[0] + (size_t)T * PIXELS,
                                   images + (size_t)order[i] * RECORD, &rng);
        float *g = memset(lanes + (size_t)lane * size, 0, size * sizeof(float));
        losses[lane] = net_loss(net, s, labels, T, g, batch);
        free(labels);
    }
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < size; i++)
        for (int lane = 1; lane < count; lane++) lanes[i] += lanes[(size_t)lane * size + i];
    for (int lane = 0; lane < count; lane++) loss += losses[lane] / batch;
    free(losses);
    return loss;
}

// net_certify: constants multiply; neither activation adds anything.
static Certificate net_certify(const Net *net) {
    Certificate k = {.log10_trunk = 0};
    for_slices(net->m, ALL_SLICES, measure_slice, NULL);
    for (int l = 0; l < net->n.layers; l++) k.log10_trunk += log10(norm(net->m, W_IN, l));
    k.log10_trunk += COMPOSE_ERROR(net->n.layers, 1, fabs(k.log10_trunk));
    k.log10_sound = k.log10_trunk + log10(norm(net->m, W_HEAD, 0));
    return k;
}

// measure: mean cross entropy and accuracy; and how far, in l2, each image may move before its
// prediction can change, by (14) of the proof: the margin over the distance of two rows of the
// head, over the constant of the trunk. A radius of -1: it is wrong as it is.
static Score measure(const Net *net, Certificate k) {
    double *distances = head_distances(net->m), *losses = doubles((size_t)net->count);
    double unit = sqrt(PIXELS) * (1 - 1e-9) / pow(10, k.log10_trunk);
    Score score = {0};
    #pragma omp parallel for schedule(dynamic, 1)
    for (int first = 0; first < net->count; first += CHUNK) {
        Space *s = &net->spaces[omp_get_thread_num()];
        int T = imin(CHUNK, net->count - first), correct = 0;
        uint16_t labels[CHUNK];
        for (int t = 0; t < T; t++)
            labels[t] = load_image(net, s->x[0] + (size_t)t * PIXELS,
                                   net->images + (size_t)(first + t) * RECORD, NULL);
        float *z = net_forward(net, s, T);
        for (int t = 0; t < T; t++, z += CLASSES) {
            double room = margin(z, labels[t], distances, CLASSES);
            net->radii[first + t] = room < 0 ? -1 : room * unit;
            losses[first + t] = cross_entropy_forward(z, labels + t, &correct, 1, CLASSES);
        }
    }
    for (int i = 0; i < net->count; i++) {
        score.loss += losses[i] / net->count;
        score.accuracy += (net->radii[i] > 0) / (double)net->count;
    }
    free(distances), free(losses);
    return score;
}

enum { RADII = 6 }; // in l2, that results are shown for
static const double radii_shown[RADII] = {36 / 255.0, 72 / 255.0, 108 / 255.0, 0.5, 1, 2};
static double certified(const Net *net, double radius) { // the share of images, after measure
    int beyond = 0;
    for (int i = 0; i < net->count; i++) beyond += net->radii[i] > radius;
    return (double)beyond / net->count;
}

// ascend: projected gradient ascent on the lead of the best wrong logit, within eps, in RMS units,
// of images x (T, PIXELS) and within [0, 1]; from x, or with rng from a random point of the ball.
// safe[t]: at every point that was visited the prediction was right.
static void ascend(const Net *net, Space *s, const float *x, const uint16_t *labels, double eps,
                   Rng *rng, int T, bool *safe) {
    int steps = net->n.attack_steps;
    size_t n = (size_t)T * PIXELS;
    float *moved = memcpy(s->x[0], x, n * sizeof(float)), low = (float)-net->n.center;
    for (size_t i = 0; rng && i < n; i++) s->dx[0][i] = (float)rng_normal(rng);
    if (rng) add_direction(moved, s->dx[0], eps * rng_uniform(rng), T, PIXELS);
    for (int step = 0; step <= steps; step++) {
        for (size_t i = 0; i < n; i++)
            moved[i] = moved[i] < low ? low : moved[i] > low + 1 ? low + 1 : moved[i];
        float *z = net_forward(net, s, T);
        for (int t = 0; t < T; t++, z += CLASSES) {
            int label = labels[t], best = label == 0;
            for (int j = 0; j < CLASSES; j++)
                if (j != label && z[j] > z[best]) best = j;
            safe[t] = (step == 0 || safe[t]) && z[label] > z[best];
            memset(z, 0, CLASSES * sizeof *z);
            z[best] = 1, z[label] = -1;
        }
        net_backward(net, s, NULL, T);
        add_direction(moved, s->dx[0], 2.5 * eps / steps, T, PIXELS);
        project(moved, x, eps, T, PIXELS); // what is clipped next only comes nearer to x
    }
}

// under_attack: the share of images that no restart, within an l2 radius, makes wrong.
static double under_attack(const Net *net, double radius) {
    double eps = radius / sqrt(PIXELS) * (1 - ROUNDING);
    int held = 0;
    #pragma omp parallel for schedule(dynamic, 1) reduction(+ : held)
    for (int first = 0; first < net->count; first += CHUNK) {
        int all = imin(CHUNK, net->count - first), which[CHUNK];
        bool standing[CHUNK], safe[CHUNK];
        uint16_t labels[CHUNK];
        float *x = floats((size_t)CHUNK * PIXELS);
        Rng rng = {(uint64_t)first};
        for (int i = 0; i < all; i++) standing[i] = net->radii[first + i] > 0;
        for (int again = 0; again < net->n.restarts; again++) {
            int T = 0;
            for (int i = 0; i < all; i++) {
                if (!standing[i]) continue;
                labels[T] = load_image(net, x + (size_t)T * PIXELS,
                                       net->images + (size_t)(first + i) * RECORD, NULL);
                which[T++] = i;
            }
            ascend(net, &net->spaces[omp_get_thread_num()], x, labels, eps, again ? &rng : NULL, T,
                   safe);
            for (int t = 0; t < T; t++) standing[which[t]] = safe[t];
        }
        for (int i = 0; i < all; i++) held += standing[i];
        free(x);
    }
    return (double)held / net->count;
}

// save_net and load_net: a checkpoint as lipgpt's, with settings of its own.
static void save_net(const Net *net) {
    char *metadata, value[PATH_SIZE];
    size_t length;
    int count;
    FILE *text = open_memstream(&metadata, &length);
    fprintf(text, "\"format\":\"lipgpt mlp 1\"");
    for (const Option *o = setup_options; o < setup_options + SETUP_OPTIONS; o++)
        if (o->use & SAVED)
            value_of(value, o, &net->n, 17), fprintf(text, ",\"%s\":\"%s\"", o->name, value);
    fclose(text);
    Array *arrays = arrays_of(net->m, &count);
    write_arrays(net->n.base.out, metadata, arrays, count);
    free(arrays), free(metadata);
}

static Net load_net(Setup n) {
    char source[PATH_SIZE + 8];
    File f = open_tensors(n.base.model);
    if (strcmp(metadata_of(&f, "format", NULL), "lipgpt mlp 1"))
        die("give a checkpoint that build/mlp wrote", "%s is of another format", f.path);
    snprintf(source, sizeof source, "%s: ", f.path);
    for (const Option *o = setup_options; o < setup_options + SETUP_OPTIONS; o++)
        if (o->use & SAVED) set_option(&n, o, metadata_of(&f, o->name, NULL), source, 1);
    Net net = net_create(&n, CHUNK);
    if (f.size - f.data != (net.m->second ? 3 : 2) * net.m->size * sizeof(float))
        die(REFETCH, "%s has not the size that its settings want", f.path);
    load_arrays(&f, net.m);
    free(f.header), free(f.bytes);
    return net;
}

// to_budget: all caps times one factor, so that the bound at the caps is K.
static void to_budget(Setup *n) {
    Config *c = &n->base;
    double bound = log(c->cap_in * c->cap_head) + (n->layers - 1) * log(c->cap_out);
    bound += (n->layers + 1) * log(bracket_width(c->width));
    double factor = exp((log(c->lipschitz) - bound) / (n->layers + 1));
    c->cap_in *= factor, c->cap_out *= factor, c->cap_head *= factor;
}

// net_train: epochs of random order; a line of the log after each.
static void net_train(Net *net, const unsigned char *images, int count, Rng *rng) {
    const Config *c = &net->n.base;
    int each = count / c->batch, steps = each * net->n.epochs;
    int *order = allocate((size_t)count, sizeof *order);
    float *lanes = floats((size_t)lanes_of(c) * net->m->size);
    double began = seconds(), loss = 0;
    FILE *log = open_file(c->log);
    fprintf(log, "epoch\ttrain_loss\tloss\taccuracy\tcertified_36\tcertificate\t"
            "largest_norm_over_cap\tseconds\n");
    finish_file(log, c->log);
    for (int i = 0; i < count; i++) order[i] = i;
    for (int step = 0; step < steps; step++) {
        for (int i = count - 1; i > 0 && step % each == 0; i--) {
            int j = (int)rng_below(rng, (size_t)i + 1), swap = order[i];
            order[i] = order[j], order[j] = swap;
        }
        loss += net_gradient(net, images, order + step % each * c->batch, rng_next(rng), lanes);
        check_finite(net->m, lanes, "gradient", step + 1);
        optimizer_step(net->m, lanes, c->lr * (1 - (double)step / steps));
        check_finite(net->m, net->m->weights, "weight", step + 1);
        if ((step + 1) % each) continue;
        Certificate k = net_certify(net);
        check_promise(net->m, &k, step + 1, BUG);
        Score score = measure(net, k);
        for (int i = 0; i < 2; i++) // the log, and a line on stderr
            fprintf(i ? stderr : log, "%d\t%.4f\t%.4f\t%.4f\t%.4f\t%s\t%.6f\t%.1f\n",
                    (step + 1) / each, loss / each, score.loss, score.accuracy,
                    certified(net, radii_shown[0]), show_bound(k.log10_sound),
                    norm_over_cap(net->m), seconds() - began);
        fflush(log), loss = 0;
    }
    fclose(log), free(order), free(lanes);
}

// show: results as name<TAB>value, and the table of radii.
static int show(Net *net, bool attacks) {
    const char *split = net->n.holdout ? "heldout" : "test";
    Certificate k = net_certify(net);
    Score score = measure(net, k);
    printf("images\t%d\n%s_loss\t%.4f\n%s_accuracy\t%.4f\n", net->count, split, score.loss, split,
           score.accuracy);
    printf("certificate\t%s\n", show_bound(k.log10_sound));
    printf("l2_constant\t%s\n", show_bound(k.log10_sound + log10((double)CLASSES / PIXELS) / 2));
    if (!is_constrained(&net->m->config) || !within_caps(net->m))
        printf("note\tnot constrained: this is a measurement of these weights, not a guarantee\n");
    print_norms(net->m);
    printf("\nl2_radius\tcertified_accuracy%s\n", attacks ? "\taccuracy_under_attack" : "");
    for (int i = 0; i < RADII; i++) {
        printf("%.4f\t%.4f", radii_shown[i], certified(net, radii_shown[i]));
        if (attacks) printf("\t%.4f", under_attack(net, radii_shown[i]));
        printf("\n"), fflush(stdout);
    }
    return net_free(net);
}

#ifndef MLP_MAIN
#define MLP_MAIN main
#endif
int MLP_MAIN(int argc, char **argv) {
    static const char *const names[] = {"train", "eval", "certify"};
    const char *value[SETUP_OPTIONS] = {NULL};
    bool paper = false, capped = false, budget = false;
    int command = 0;
    start_process();
    while (command < 3 && (argc < 2 || strcmp(argv[1], names[command]))) command++;
    if (command == 3) {
        printf("mlp: a perceptron on CIFAR-10. Usage: mlp train|eval|certify [--key value]\n");
        for (int i = 0; i < SETUP_OPTIONS; i++)
            printf("    --%-15s %s\n", setup_options[i].name, setup_options[i].help);
        return argc < 2 || strcmp(argv[1], "--help") ? 2 : 0;
    }
    read_arguments(setup_options, SETUP_OPTIONS, 1 << command, argc - 2, argv + 2, value);
    for (int i = 0; i < SETUP_OPTIONS; i++) {
        const Option *o = &setup_options[i];
        paper = paper || (value[i] && o->offset == AT(preset) && !strcmp(value[i], "paper"));
        budget = budget || (value[i] && o->offset == AT(lipschitz));
        capped = capped || (value[i] && o->use & BUDGETED);
    }
    Setup n = preset_of(paper ? PAPER : TIGHT);
    Config *c = &n.base;
    for (int i = 0; i < SETUP_OPTIONS; i++) {
        if (!value[i]) continue;
        set_option(&n, &setup_options[i], value[i], "--", 2);
        if (setup_options[i].offset == AT(cap)) c->cap_in = c->cap_out = c->cap_head = c->cap;
    }
    if (!budget && (capped || !holds_caps(c))) c->lipschitz = 0;
    if (c->lipschitz > 0 && (capped || !holds_caps(c)))
        die_usage("leave one out", "--lipschitz chooses the caps, and holds them");
    if (command > 0) {
        Net net = load_net(n);
        net.images = read_images(&net.n, false, &net.count);
        net.radii = doubles((size_t)net.count);
        return show(&net, command == 2);
    }
    Rng rng = {(uint64_t)c->seed};
    int count, lane = (c->batch + lanes_of(c) - 1) / lanes_of(c);
    unsigned char *images = read_images(&n, true, &count);
    check_places((const char *const[]){c->out, c->log}, 0, 2);
    if (c->lipschitz > 0) to_budget(&n);
    Net net = net_create(&n, lane > CHUNK ? lane : CHUNK);
    net.images = read_images(&n, false, &net.count);
    net.radii = doubles((size_t)net.count);
    net_init(&net, &rng);
    net_train(&net, images, count, &rng);
    save_net(&net), free(images);
    return show(&net, false);
}
