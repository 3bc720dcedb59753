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

enum { SIDE = 32, PIXELS = 3 * SIDE * SIDE, CLASSES = 10, MOST_LAYERS = 16 };
typedef enum { FIRST_ZERO, HEAD_ZERO } Start; // which layer is zero at the beginning
typedef enum { RELU, MAX_MIN } Bend;

typedef struct {
    Config base; // the first field: lipgpt's options are at the same offsets
    Start start;
    Bend bend;
    int layers, epochs, mirror, shift, holdout, images, attack_steps, restarts;
    double center, margin;
} Network;

// network_preset: the paper's network and training, or ours (dev/mlp.md says what was tried).
static Network network_preset(Preset preset) {
    Network n = {.base = preset_config(PAPER), .layers = 2, .epochs = 50, .images = 10000,
                 .attack_steps = 100, .restarts = 5};
    Config *c = &n.base;
    strcpy(c->data, "data/cifar-10-batches-bin"), strcpy(c->log, "out/mlp.tsv");
    strcpy(c->out, "out/mlp.safetensors"), strcpy(c->model, c->out);
    c->preset = preset, c->batch = 512, c->temperature = 1, c->cap_bias = 0;
    c->cap_in = c->cap_out = c->cap_head = 4.86; // 115 = 4.86^3
    if (preset == PAPER) c->lr = 1, c->lipschitz = 115;
    else {
        n.bend = MAX_MIN, n.start = HEAD_ZERO, n.center = 0.5, n.mirror = 1;
        c->width = 512, c->bias = 1, c->lr = 0.5, c->lipschitz = 17.5, c->constraint = SOFT;
    }
    return n;
}

#define OF(field) offsetof(Network, field)
#define COUNT(name, field, low, high, use, help) \
    {name, INTEGER, OF(field), low, high, use, help, NULL}
static const char *const start_words[] = {"first", "head", NULL};
static const char *const bend_words[] = {"relu", "maxmin", NULL};
static const Option network_options[] = {
    TEXT("data", data, 1, TRAIN | EVAL | CERTIFY, "folder of CIFAR-10's binary batches"),
    TEXT("model", model, 1, EVAL | CERTIFY, "checkpoint to read"),
    TEXT("out", out, 1, TRAIN, "checkpoint to write"),
    TEXT("log", log, 1, TRAIN, "table of epochs to write"),
    WORD("preset", preset, "tight (ours) or paper (to the letter)"),
    NUM("lipschitz", lipschitz, 0, 1e300, KEPT, "K never exceeds it: caps are scaled; 0 = none"),
    COUNT("epochs", epochs, 1, 1e6, KEPT, "passes over the training images"),
    INT("batch", batch, 1, 1 << 16, KEPT, "images of a step"),
    INT("seed", seed, 0, INT_MAX, KEPT, "of all random draws"),
    COUNT("holdout", holdout, 0, 49999, KEPT, "last training images, to validate on; 0: test set"),
    COUNT("images", images, 1, 1e6, EVAL | CERTIFY, "at most so many, the first ones"),
    COUNT("attack-steps", attack_steps, 0, 1e6, CERTIFY, "of gradient ascent; 0 = no attack"),
    COUNT("restarts", restarts, 1, 1e6, CERTIFY, "of the attack, all but the first at random"),
    COUNT("layers", layers, 1, MOST_LAYERS, KEPT, "hidden ones"),
    INT("width", width, 2, 1 << 14, KEPT, "of a hidden layer"),
    {"activation", CHOICE, OF(bend), 0, 0, KEPT, "relu|maxmin (ours)", bend_words},
    FLAG("bias", bias, "biases (ours)"),
    {"zero", CHOICE, OF(start), 0, 0, KEPT, "first|head: the layer that starts there", start_words},
    {"center", REAL, OF(center), 0, 1, KEPT, "taken off every pixel, which are 0 to 1 (ours)", NULL},
    COUNT("mirror", mirror, 0, 1, KEPT, "half of the training images, left to right (ours)"),
    COUNT("shift", shift, 0, SIDE - 1, KEPT, "training images by up to so many pixels (ours)"),
    NUM("temperature", temperature, 1e-3, 1e6, KEPT, "the loss sees logits times it (ours)"),
    {"margin", REAL, OF(margin), 0, 1e6, KEPT, "it wants the right logit ahead by this (ours)", NULL},
    WORD("optimizer", optimizer, "muon|adamw (which wants --lr 0.001)"),
    NUM("lr", lr, 0, 1e6, KEPT, "learning rate at the start; falls linearly to 0"),
    NUM("momentum", momentum, 0, 0.999999, KEPT, "of Muon; AdamW's beta1"),
    NUM("beta2", beta2, 0, 0.999999, KEPT, "AdamW's, of squared gradients"),
    NUM("weight-decay", weight_decay, 0, 1e3, KEPT, "times u; AdamW: times the learning rate"),
    NUM("share-head", share_head, 0, 1e6, KEPT, "factor on the step of the last layer (ours)"),
    NUM("share-bias", share_bias, 0, 1e6, KEPT, "step of biases (ours)"),
    WORD("constraint", constraint, "soft|hard|normalize|stiefel|hammer|decay (the last hold none)"),
    NUM("cap", cap, 0, 1e6, TRAIN | BUDGETED, "of all layers: RMS->RMS norm; 0 = none"),
    NUM("cap-in", cap_in, 0, 1e6, KEPT | BUDGETED, "of the first layer"),
    NUM("cap-out", cap_out, 0, 1e6, KEPT | BUDGETED, "of the other hidden layers"),
    NUM("cap-head", cap_head, 0, 1e6, KEPT | BUDGETED, "of the last layer"),
    NUM("spectral-decay", spectral_decay, 0, 1, KEPT, "of --constraint decay: taken off the top"),
    INT("lanes", lanes, 1, 1 << 10, KEPT, "parts of a batch: most threads used"),
};
enum { NETWORK_OPTIONS = sizeof network_options / sizeof *network_options };

// Net: a network with its tensors, and what a thread needs for T images, forward and backward.
typedef struct { Network n; Model *m; } Net;
typedef struct {
    float *x[MOST_LAYERS + 1], *dx[MOST_LAYERS + 1]; // (T, I) the input of every layer
    float *z[MOST_LAYERS + 1];                       // (T, O) its output before the activation
} Space;

static int inputs_of(const Net *net, int l) { return l ? net->n.base.width : PIXELS; }
static int outputs_of(const Net *net, int l) {
    return l < net->n.layers ? net->n.base.width : CLASSES;
}

// matrix_of and bias_of: of layer l, in the weights or in a gradient.
static float *matrix_of(const Net *net, float *base, int l) {
    return values(net->m, base, l < net->n.layers ? W_IN : W_HEAD, l);
}
static float *bias_of(const Net *net, float *base, int l) {
    return values(net->m, base, l < net->n.layers ? B_IN : B_OUT, l);
}

// net_create: the table of tensors, equal shares for all layers (paper), and zero weights.
static Net net_create(const Network *n) {
    Net net = {*n, allocate(1, sizeof(Model))};
    Config *c = &net.m->config;
    *c = n->base, c->heads = 1, c->blocks = n->layers, c->vocabulary = CLASSES;
    net.m->count = c->blocks * KINDS;
    net.m->tensors = allocate((size_t)net.m->count, sizeof(Tensor));
    net.m->brackets = allocate((size_t)net.m->count, sizeof(Bracket));
    double share = 1.0 / (n->layers + 1);
    for (int l = 0; l < n->layers; l++) {
        double cap = l ? c->cap_out : c->cap_in;
        add_tensor(net.m, W_IN, l, "weight", c->width, inputs_of(&net, l), cap, share);
        add_tensor(net.m, B_IN, l, "bias", c->bias, c->width, 0, c->share_bias);
    }
    add_tensor(net.m, W_HEAD, 0, "head.weight", CLASSES, c->width, c->cap_head,
               share * c->share_head);
    add_tensor(net.m, B_OUT, 0, "head.bias", c->bias, CLASSES, 0, c->share_bias);
    net.m->weights = floats(net.m->size), net.m->momentum = floats(net.m->size);
    net.m->second = c->optimizer == ADAMW ? floats(net.m->size) : NULL;
    return net;
}

// net_init: all layers but one orthogonal, with norm min(1, cap).
static void net_init(Net *net, Rng *rng) {
    for (int l = 0; l <= net->n.layers; l++) {
        int rows = outputs_of(net, l), cols = inputs_of(net, l);
        double cap = l == 0 ? net->n.base.cap_in : net->n.base.cap_out;
        float *w = matrix_of(net, net->m->weights, l);
        if (l == net->n.layers) cap = net->n.base.cap_head;
        if (l == (net->n.start == FIRST_ZERO ? 0 : net->n.layers)) continue;
        for (int i = 0; i < rows * cols; i++) w[i] = (float)rng_normal(rng);
        orthogonal_init(w, rows, cols, cap > 0 ? min(1, cap) : 1);
    }
}

static Space *spaces_create(const Net *net, int count, int T) {
    Space *all = allocate((size_t)count, sizeof *all);
    for (Space *s = all; s < all + count; s++)
        for (int l = 0; l <= net->n.layers; l++) {
            size_t inputs = (size_t)T * inputs_of(net, l);
            s->x[l] = floats(inputs), s->dx[l] = floats(inputs);
            s->z[l] = floats((size_t)T * outputs_of(net, l));
        }
    return all;
}

static void spaces_free(Space *all, const Net *net, int count) {
    for (Space *s = all; s < all + count; s++)
        for (int l = 0; l <= net->n.layers; l++) free(s->x[l]), free(s->dx[l]), free(s->z[l]);
    free(all);
}

// relu: a = max(z, 0). Backward, da *= its slope, which is 1/2 at 0, as that of the maximum of the
// paper's framework: a first layer of zeros would never move with slope 0 there.
static void relu_forward(float *a, const float *z, size_t n) {
    for (size_t i = 0; i < n; i++) a[i] = z[i] > 0 ? z[i] : 0;
}
static void relu_backward(float *da, const float *z, size_t n) {
    for (size_t i = 0; i < n; i++) da[i] *= z[i] > 0 ? 1 : z[i] < 0 ? 0 : 0.5f;
}

// net_forward: from images in s->x[0] (T, PIXELS) to logits in s->z[layers] (T, CLASSES).
static void net_forward(const Net *net, Space *s, int T) {
    float *w = net->m->weights;
    for (int l = 0; l <= net->n.layers; l++) {
        int I = inputs_of(net, l), O = outputs_of(net, l);
        linear_forward(s->z[l], s->x[l], matrix_of(net, w, l), bias_of(net, w, l), T, I, O);
        if (l == net->n.layers) return;
        if (net->n.bend == RELU) relu_forward(s->x[l + 1], s->z[l], (size_t)T * O);
        else activation_forward(s->x[l + 1], s->z[l], MAXMIN, T, O);
    }
}

// net_backward: s->z[layers] holds dlogits; s->dx[0] becomes the gradient of the images, and g is
// added to, unless it is NULL.
static void net_backward(const Net *net, Space *s, float *g, int T) {
    float *dz = s->z[net->n.layers];
    for (int l = net->n.layers; l >= 0; dz = s->dx[l--]) {
        int I = inputs_of(net, l), O = outputs_of(net, l);
        memset(s->dx[l], 0, (size_t)T * I * sizeof(float));
        linear_backward(s->dx[l], matrix_of(net, g, l), bias_of(net, g, l), dz, s->x[l],
                        matrix_of(net, net->m->weights, l), T, I, O);
        if (l > 0 && net->n.bend == RELU) relu_backward(s->dx[l], s->z[l - 1], (size_t)T * I);
        else if (l > 0) activation_backward(s->dx[l], s->z[l - 1], MAXMIN, T, I);
    }
}

// net_loss: summed cross entropy of T images in s->x[0], of temperature (logits - margin at the
// label); with a gradient g, also backward, for the mean over `count` images.
static double net_loss(const Net *net, Space *s, const uint16_t *labels, int T, float *g,
                       double count, int *correct) {
    float *z = s->z[net->n.layers];
    double temperature = net->n.base.temperature;
    net_forward(net, s, T);
    for (int t = 0; t < T; t++) z[(size_t)t * CLASSES + labels[t]] -= (float)net->n.margin;
    scale_by(z, (size_t)T * CLASSES, temperature);
    double loss = cross_entropy_forward(z, labels, correct, T, CLASSES);
    if (!g) return loss;
    cross_entropy_backward(z, labels, count, T, CLASSES);
    scale_by(z, (size_t)T * CLASSES, temperature);
    net_backward(net, s, g, T);
    return loss;
}

// Images: as in the files, one after another: the label, then 1024 red, green and blue numbers.
enum { RECORD = 1 + PIXELS };
typedef struct { unsigned char *records; int count; } Images;

// read_images: files of a folder, one behind the other.
static Images read_images(const char *folder, const char *const *names) {
    Images all = {allocate(1, 1), 0};
    for (; *names; names++) {
        char path[PATH_SIZE + 32];
        size_t size, before = (size_t)all.count * RECORD;
        snprintf(path, sizeof path, "%s/%s", folder, *names);
        unsigned char *bytes = read_file(path, &size, "run prepare_data.py --cifar10");
        if (size == 0 || size % RECORD)
            die("run prepare_data.py --cifar10", "%s has %zu bytes, no multiple of %d", path, size,
                RECORD);
        unsigned char *records = allocate(before + size, 1);
        memcpy(records, all.records, before), memcpy(records + before, bytes, size);
        free(all.records), free(bytes);
        all = (Images){records, all.count + (int)(size / RECORD)};
    }
    for (int i = 0; i < all.count; i++)
        if (all.records[(size_t)i * RECORD] >= CLASSES)
            die("run prepare_data.py --cifar10", "image %d has label %d, of %d", i,
                all.records[(size_t)i * RECORD], CLASSES);
    return all;
}

// load_image: into x (PIXELS), 0 to 1 less the center, moved by (down, right) pixels, whose border
// is repeated, and mirrored; returns the label.
static uint16_t load_image(const Net *net, float *x, Images images, int i, int down, int right,
                           bool mirrored) {
    const unsigned char *record = images.records + (size_t)i * RECORD;
    for (int row = 0; row < 3 * SIDE; row++)
        for (int column = 0; column < SIDE; column++) {
            int from = (mirrored ? SIDE - 1 - column : column) - right;
            int line = imin((int)max(0, row % SIDE - down), SIDE - 1) + row / SIDE * SIDE;
            int p = record[1 + line * SIDE + imin((int)max(0, from), SIDE - 1)];
            x[row * SIDE + column] = (float)(p / 255.0 - net->n.center);
        }
    return record[0];
}

// net_gradient: mean loss over a batch, images[order[0]] and so on, by lanes as in batch_gradient;
// the first lane gets the gradient.     lanes (lanes_of, size)
static double net_gradient(const Net *net, Space *spaces, Images images, const int *order,
                           uint64_t seed, float *lanes) {
    int batch = net->n.base.batch, count = lanes_of(&net->n.base), shift = net->n.shift;
    size_t size = net->m->size;
    double *losses = doubles((size_t)count), loss = 0;
    #pragma omp parallel for schedule(dynamic, 1)
    for (int lane = 0; lane < count; lane++) {
        Space *s = &spaces[omp_get_thread_num()];
        Rng rng = {seed + (uint64_t)lane};
        int T = 0, correct = 0;
        uint16_t *labels = allocate((size_t)batch, sizeof *labels);
        for (int i = lane; i < batch; i += count, T++) {
            int down = (int)rng_below(&rng, 2 * (size_t)shift + 1) - shift;
            int right = (int)rng_below(&rng, 2 * (size_t)shift + 1) - shift;
            labels[T] = load_image(net, s->x[0] + (size_t)T * PIXELS, images, order[i], down,
                                   right, net->n.mirror && rng_below(&rng, 2));
        }
        float *g = memset(lanes + (size_t)lane * size, 0, size * sizeof(float));
        losses[lane] = net_loss(net, s, labels, T, g, batch, &correct);
        free(labels);
    }
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < size; i++)
        for (int lane = 1; lane < count; lane++) lanes[i] += lanes[(size_t)lane * size + i];
    for (int lane = 0; lane < count; lane++) loss += losses[lane];
    free(losses);
    return loss / batch;
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

// proven_radii: how far, in l2, each image may move before its prediction can change, as (14) of
// the proof: the margin over the distance of two rows of the head, over the constant of the trunk.
// -1: it is wrong as it is.     radii (images.count); returns the mean cross entropy
enum { CHUNK = 50 }; // images of a forward pass
static double proven_radii(const Net *net, Space *spaces, Images images, double *radii) {
    double *distances = head_distances(net->m), *losses = doubles((size_t)images.count), loss = 0;
    double unit = sqrt(PIXELS) * (1 - 1e-9) / pow(10, net_certify(net).log10_trunk);
    #pragma omp parallel for schedule(dynamic, 1)
    for (int first = 0; first < images.count; first += CHUNK) {
        Space *s = &spaces[omp_get_thread_num()];
        int T = imin(CHUNK, images.count - first), correct = 0;
        uint16_t labels[CHUNK];
        for (int t = 0; t < T; t++)
            labels[t] = load_image(net, s->x[0] + (size_t)t * PIXELS, images, first + t, 0, 0, 0);
        net_forward(net, s, T);
        for (int t = 0; t < T; t++) {
            float *z = s->z[net->n.layers] + (size_t)t * CLASSES;
            double room = margin(z, labels[t], distances, CLASSES);
            radii[first + t] = room < 0 ? -1 : room * unit;
            losses[first + t] = cross_entropy_forward(z, labels + t, &correct, 1, CLASSES);
        }
    }
    for (int i = 0; i < images.count; i++) loss += losses[i] / images.count;
    free(distances), free(losses);
    return loss;
}

// share_beyond: of images with a radius above this one; above 0 are those that are right.
static double share_beyond(const double *radii, int count, double radius) {
    int beyond = 0;
    for (int i = 0; i < count; i++) beyond += radii[i] > radius;
    return (double)beyond / count;
}

// ascend: projected gradient ascent within eps, in RMS units, of images x (T, PIXELS) and within
// [0, 1], on the lead of the best wrong logit; from x, or with rng from anywhere in the ball.
// safe[t]: every point that was visited is predicted rightly.
static void ascend(const Net *net, Space *s, const float *x, const uint16_t *labels, double eps,
                   Rng *rng, int T, bool *safe) {
    int steps = net->n.attack_steps;
    size_t n = (size_t)T * PIXELS;
    float *moved = memcpy(s->x[0], x, n * sizeof(float)), low = (float)-net->n.center;
    for (size_t i = 0; rng && i < n; i++) s->dx[0][i] = (float)rng_normal(rng);
    if (rng) add_direction(moved, s->dx[0], eps * rng_uniform(rng), T, PIXELS);
    memset(safe, 1, (size_t)T);
    for (int step = 0; step <= steps; step++) {
        for (size_t i = 0; i < n; i++) moved[i] = (float)min(max(moved[i], low), low + 1);
        net_forward(net, s, T);
        for (int t = 0; t < T; t++) {
            float *z = s->z[net->n.layers] + (size_t)t * CLASSES;
            int label = labels[t], best = label == 0;
            for (int j = 0; j < CLASSES; j++)
                if (j != label && z[j] > z[best]) best = j;
            safe[t] = safe[t] && z[label] > z[best];
            memset(z, 0, CLASSES * sizeof *z);
            z[best] = 1, z[label] = -1;
        }
        net_backward(net, s, NULL, T);
        add_direction(moved, s->dx[0], 2.5 * eps / steps, T, PIXELS);
        project(moved, x, eps, T, PIXELS); // clipping, next, only brings it nearer to x
    }
}

// under_attack: the share of images that no restart of the attack, within this l2 radius, makes
// wrong.     radii (images.count), of proven_radii, say which are right to begin with
static double under_attack(const Net *net, Space *spaces, Images images, const double *radii,
                           double radius) {
    double eps = radius / sqrt(PIXELS) * (1 - ROUNDING);
    int held = 0;
    #pragma omp parallel for schedule(dynamic, 1) reduction(+ : held)
    for (int first = 0; first < images.count; first += CHUNK) {
        uint16_t labels[CHUNK];
        bool safe[CHUNK];
        float *x = floats((size_t)CHUNK * PIXELS);
        Rng rng = {(uint64_t)first};
        int T = 0;
        for (int i = first; i < imin(first + CHUNK, images.count); i++)
            if (radii[i] > 0) {
                labels[T] = load_image(net, x + (size_t)T * PIXELS, images, i, 0, 0, false);
                T++;
            }
        for (int again = 0; again < net->n.restarts && T > 0; again++) {
            int left = 0;
            ascend(net, &spaces[omp_get_thread_num()], x, labels, eps, again ? &rng : NULL, T, safe);
            for (int t = 0; t < T; t++) {
                if (!safe[t]) continue;
                memmove(x + (size_t)left * PIXELS, x + (size_t)t * PIXELS, PIXELS * sizeof *x);
                labels[left++] = labels[t];
            }
            T = left;
        }
        held += T;
        free(x);
    }
    return (double)held / images.count;
}

// save_net and load_net: a checkpoint as lipgpt's, with settings of its own.
static void save_net(const Net *net) {
    char *metadata, value[PATH_SIZE];
    size_t length;
    int count;
    FILE *text = open_memstream(&metadata, &length);
    fprintf(text, "\"format\":\"lipgpt mlp 1\"");
    for (const Option *o = network_options; o < network_options + NETWORK_OPTIONS; o++) {
        if (!(o->use & SAVED)) continue;
        value_of(value, o, &net->n, 17);
        fprintf(text, ",\"%s\":\"%s\"", o->name, value);
    }
    fclose(text);
    Array *arrays = arrays_of(net->m, &count);
    write_arrays(net->n.base.out, metadata, arrays, count);
    free(arrays), free(metadata);
}

static Net load_net(Network n) {
    char source[PATH_SIZE + 8];
    File f = open_tensors(n.base.model);
    if (strcmp(metadata_of(&f, "format", NULL), "lipgpt mlp 1"))
        die("give a checkpoint of build/mlp train", "%s is of format %s", f.path,
            metadata_of(&f, "format", NULL));
    snprintf(source, sizeof source, "%s: ", f.path);
    for (const Option *o = network_options; o < network_options + NETWORK_OPTIONS; o++)
        if (o->use & SAVED) set_option(&n, o, metadata_of(&f, o->name, NULL), source, 1);
    Net net = net_create(&n);
    if (f.size - f.data != (net.m->second ? 3 : 2) * net.m->size * sizeof(float))
        die(REFETCH, "%s has %zu bytes of data, not what its settings want", f.path,
            f.size - f.data);
    load_arrays(&f, net.m);
    free(f.header), free(f.bytes);
    return net;
}

static void net_free(Net *net, Space *spaces) {
    spaces_free(spaces, net, omp_get_max_threads());
    model_free(net->m);
}

// to_budget: all caps times one factor, so that the bound at the caps is K.
static void to_budget(Network *n) {
    Config *c = &n->base;
    double log_bound = log(c->cap_in * c->cap_head) + (n->layers - 1) * log(c->cap_out) +
                       log(bracket_width(c->width)) * (n->layers + 1);
    double factor = exp((log(c->lipschitz) - log_bound) / (n->layers + 1));
    c->cap_in *= factor, c->cap_out *= factor, c->cap_head *= factor;
}

// read_split: the images to train on, and those to be measured on: held out of them, or the test's.
static Images read_split(const Network *n, bool to_train) {
    static const char *const train[] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                        "data_batch_4.bin", "data_batch_5.bin", NULL};
    static const char *const test[] = {"test_batch.bin", NULL};
    Images all = read_images(n->base.data, to_train || n->holdout ? train : test);
    int kept = all.count - n->holdout;
    if (to_train && kept < n->base.batch)
        die_usage("hold out fewer", "--holdout %d leaves no batch of %d", n->holdout, all.count);
    if (n->holdout && !to_train)
        memmove(all.records, all.records + (size_t)kept * RECORD, (size_t)n->holdout * RECORD);
    all.count = to_train ? kept : imin(n->holdout ? n->holdout : all.count, n->images);
    return all;
}

// results: loss, accuracy, bounds and radii of the images that are measured on.
static Score print_results_of(const Net *net, Space *spaces, Images images, double *radii) {
    const char *split = net->n.holdout ? "heldout" : "test";
    double K = net_certify(net).log10_sound;
    Score score = {proven_radii(net, spaces, images, radii), 0, 0};
    score.accuracy = share_beyond(radii, images.count, 0);
    printf("%s_loss\t%.4f\n%s_accuracy\t%.4f\n", split, score.loss, split, score.accuracy);
    printf("certificate\t%s\nl2_constant\t%s\n", show_bound(K),
           show_bound(K + log10((double)CLASSES / PIXELS) / 2));
    if (!is_constrained(&net->m->config) || !within_caps(net->m))
        printf("note\tnot constrained: this is a measurement of these weights, not a guarantee\n");
    return score;
}

static const double radii_shown[] = {36 / 255.0, 72 / 255.0, 108 / 255.0, 0.5, 1, 2};

static int command_train_net(Network n) {
    Config *c = &n.base;
    Rng rng = {(uint64_t)c->seed};
    Images train = read_split(&n, true), measured = read_split(&n, false);
    check_places((const char *const[]){c->out, c->log}, 0, 2);
    if (c->lipschitz > 0) to_budget(&n);
    Net net = net_create(&n);
    net_init(&net, &rng);
    int lane = (c->batch + lanes_of(c) - 1) / lanes_of(c), each = train.count / c->batch;
    Space *spaces = spaces_create(&net, omp_get_max_threads(), lane > CHUNK ? lane : CHUNK);
    int *order = allocate((size_t)train.count, sizeof *order), steps = each * n.epochs;
    float *lanes = floats((size_t)lanes_of(c) * net.m->size);
    double *radii = doubles((size_t)measured.count), began = seconds(), loss = 0;
    FILE *log = open_file(c->log);
    fprintf(log, "epoch\ttrain_loss\tloss\taccuracy\tcertificate\tlargest_norm_over_cap\tseconds\n");
    finish_file(log, c->log);
    net.m->config.steps = steps;
    for (int i = 0; i < train.count; i++) order[i] = i;
    for (int step = 0; step < steps; step++) {
        if (step % each == 0)
            for (int i = train.count - 1; i > 0; i--) {
                int j = (int)rng_below(&rng, (size_t)i + 1), swap = order[i];
                order[i] = order[j], order[j] = swap;
            }
        loss += net_gradient(&net, spaces, train, order + step % each * c->batch, rng_next(&rng),
                             lanes) / each;
        check_finite(net.m, lanes, "gradient", step + 1);
        optimizer_step(net.m, lanes, c->lr * (1 - (double)step / steps));
        check_finite(net.m, net.m->weights, "weight", step + 1);
        if ((step + 1) % each) continue;
        Certificate k = net_certify(&net);
        check_promise(net.m, &k, step + 1, BUG);
        double measured_loss = proven_radii(&net, spaces, measured, radii);
        fprintf(log, "%d\t%.4f\t%.4f\t%.4f\t%s\t%.6f\t%.1f\n", (step + 1) / each, loss,
                measured_loss, share_beyond(radii, measured.count, 0), show_bound(k.log10_sound),
                norm_over_cap(net.m), seconds() - began);
        fprintf(stderr, "%d/%d  train %.4f  %s %.4f (%.2f %%, certified %.2f %.2f %.2f)  certificate %s  %.0f s\n",
                (step + 1) / each, n.epochs, loss, n.holdout ? "held out" : "test", measured_loss,
                100 * share_beyond(radii, measured.count, 0), 100 * share_beyond(radii, measured.count, radii_shown[0]),
                100 * share_beyond(radii, measured.count, radii_shown[1]), 100 * share_beyond(radii, measured.count, radii_shown[2]),
                show_bound(k.log10_sound), seconds() - began);
        fflush(log), loss = 0;
    }
    fclose(log);
    save_net(&net);
    print_results_of(&net, spaces, measured, radii);
    for (int i = 0; i < 3; i++)
        printf("certified_%.4f\t%.4f\n", radii_shown[i], share_beyond(radii, measured.count, radii_shown[i]));
    printf("checkpoint\t%s\nlog\t%s\n", c->out, c->log);
    free(train.records), free(measured.records), free(order), free(lanes), free(radii);
    net_free(&net, spaces);
    return 0;
}

static int command_use_net(Network n, bool attacks) {
    Net net = load_net(n);
    Images images = read_split(&net.n, false);
    Space *spaces = spaces_create(&net, omp_get_max_threads(), CHUNK);
    double *radii = doubles((size_t)images.count);
    print_results_of(&net, spaces, images, radii);
    print_norms(net.m);
    printf("\nl2_radius\tcertified_accuracy%s\t(%d images)\n", attacks ? "\taccuracy_under_attack" : "", images.count);
    for (int i = 0; i < 6; i++) {
        printf("%.4f\t%.4f", radii_shown[i], share_beyond(radii, images.count, radii_shown[i]));
        if (attacks) printf("\t%.4f", under_attack(&net, spaces, images, radii, radii_shown[i]));
        printf("\n"), fflush(stdout);
    }
    free(images.records), free(radii);
    net_free(&net, spaces);
    return 0;
}

#ifndef MLP_MAIN
#define MLP_MAIN main
#endif
int MLP_MAIN(int argc, char **argv) {
    static const char *const words[] = {"train", "eval", "certify"};
    const char *value[NETWORK_OPTIONS] = {NULL}, *cap = NULL, *budget = NULL;
    Network n = network_preset(TIGHT);
    int k = 0;
    start_process();
    while (k < 3 && (argc < 2 || strcmp(argv[1], words[k]))) k++;
    if (k == 3) {
        printf("mlp: CIFAR-10. Usage: mlp train|eval|certify [--key value]\n");
        for (const Option *o = network_options; o < network_options + NETWORK_OPTIONS; o++)
            printf("    --%-15s %s\n", o->name, o->help);
        return argc < 2 || strcmp(argv[1], "--help") ? 2 : 0;
    }
    read_arguments(network_options, NETWORK_OPTIONS, 1 << k, argc - 2, argv + 2, value);
    for (int i = 0; i < NETWORK_OPTIONS; i++) {
        const Option *o = &network_options[i];
        if (value[i] && o->offset == AT(preset) && !strcmp(value[i], "paper")) n = network_preset(PAPER);
    }
    for (int i = 0; i < NETWORK_OPTIONS; i++) {
        const Option *o = &network_options[i];
        if (!value[i]) continue;
        set_option(&n, o, value[i], "--", 2);
        if (o->offset == AT(cap)) n.base.cap_in = n.base.cap_out = n.base.cap_head = n.base.cap;
        if (o->use & BUDGETED) cap = o->name;
        if (o->offset == AT(lipschitz)) budget = value[i];
    }
    if (!budget && (cap || !holds_caps(&n.base))) n.base.lipschitz = 0;
    if (n.base.lipschitz > 0 && !holds_caps(&n.base)) die_usage("choose another", "--lipschitz cannot be held");
    return k == 0 ? command_train_net(n) : command_use_net(n, k == 2 && n.attack_steps > 0);
}
