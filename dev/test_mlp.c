// Tests of dev/mlp.c. test_lipgpt.c includes this file, behind its own tools.

// small_net: a perceptron, and images, neither black nor white, with the labels it gives them.
enum { WIDE_NET = 6, IMAGES = 30 };
static Net small_net(Preset preset, int layers, Family family, double norm, uint64_t seed) {
    Setup n = preset_setup(preset);
    Rng rng = {seed};
    n.c.blocks = layers, n.c.width = WIDE_NET, n.c.batch = 3;
    Net net = net_create(&n, CHUNK);
    EACH(t, net.m) {
        float *w = net.m->weights + t->offset;
        if (t->size && is_matrix(t->kind)) fill_matrix(w, t->rows, t->cols, family, norm, &rng);
        else randomize(w, t->size, 0.01, &rng); // of the signal's size
    }
    net.count = IMAGES, net.radii = doubles(IMAGES), net.images = allocate(IMAGES, RECORD);
    for (int i = 0; i < IMAGES * RECORD; i++)
        net.images[i] = (unsigned char)(i % RECORD ? 64 + rng_below(&rng, 128) : 0);
    for (int i = 0; i < IMAGES; i++) {
        load_image(&net, net.spaces, 0, i, NULL);
        float *z = net_forward(&net, net.spaces, 1);
        for (int j = 0; j < LABELS; j++)
            if (z[j] > z[net.images[i * RECORD]]) net.images[i * RECORD] = (unsigned char)j;
    }
    return net;
}

static void small_net_free(Net *net) {
    for (Space *s = net->spaces; s < net->spaces + omp_get_max_threads(); s++) {
        for (int l = 0; l <= net->n.c.blocks; l++) free(s->x[l]), free(s->dx[l]), free(s->z[l]);
        free(s->labels);
    }
    free(net->spaces), free(net->images), free(net->radii), model_free(net->m);
}

// The mean loss of three images that stand in the first space.
static Net *perceptron;
static float mlp_images[3 * PIXELS], mlp_gradient[3 * PIXELS];
static double perceptron_loss(void) {
    Space *s = perceptron->spaces;
    int correct = 0;
    memcpy(s->x[0], mlp_images, sizeof mlp_images);
    return cross_entropy_forward(net_forward(perceptron, s, 3), ids, &correct, 3, LABELS) / 3;
}

// Every tensor's gradient, and that of the images; ours and the paper's.
static void test_mlp_gradients(void) {
    for (int i = 0; i < 2 && DOUBLE; i++) { // max has kinks
        Net net = small_net(i ? PAPER : TIGHT, 2 + i, GAUSSIAN, 3, 50 + (uint64_t)i);
        float *lanes = floats(LANES * net.m->size);
        perceptron = &net;
        scale_by(net.m->weights, WIDE_NET * PIXELS, 30); // out of the kinks' reach
        for (int t = 0; t < 3; t++) net.images[t * RECORD] = (unsigned char)ids[t];
        for (int t = 0; t < 3; t++) load_image(&net, net.spaces, t, t, NULL);
        memcpy(mlp_images, net.spaces->x[0], sizeof mlp_images);
        double loss = perceptron_loss();
        cross_entropy_backward(net.spaces->z[net.n.c.blocks], ids, 3, 3, LABELS);
        memset(lanes, 0, net.m->size * sizeof *lanes);
        net_backward(&net, net.spaces, lanes, 3);
        memcpy(mlp_gradient, net.spaces->dx[0], sizeof mlp_gradient);
        expect(loss > 0.1);
        EACH(t, net.m)
            if (t->size)
                check_gradient(perceptron_loss, net.m->weights + t->offset, lanes + t->offset,
                               t->size, 1e-8, t->name);
        check_gradient(perceptron_loss, mlp_images, mlp_gradient, 3 * PIXELS, 1e-8, "images");
        free(lanes), small_net_free(&net);
    }
}

// A batch in lanes: the mean over its images. Of the paper's network at the start, whose first
// layer is zero, only that one has a gradient, as ReLU's slope there is 1/2.
static void test_mlp_batch(void) {
    enum { BATCH = 20 };
    int batch[BATCH];
    Net net = small_net(PAPER, 2, GAUSSIAN, 3, 60);
    float *lanes = floats(LANES * net.m->size), *g = floats(net.m->size);
    double loss = 0;
    Rng rng = {1};
    net.n.c.batch = BATCH;
    for (int i = 0; i < BATCH; i++) {
        int correct = 0;
        batch[i] = (int)rng_below(&rng, IMAGES);
        load_image(&net, net.spaces, 0, batch[i], NULL);
        float *z = net_forward(&net, net.spaces, 1);
        loss += cross_entropy_forward(z, net.spaces->labels, &correct, 1, LABELS) / BATCH;
        cross_entropy_backward(z, net.spaces->labels, BATCH, 1, LABELS);
        net_backward(&net, net.spaces, g, 1);
    }
    near(net_gradient(&net, batch, 3, lanes), loss, DOUBLE ? 1e-12 : 1e-5, "loss of a batch");
    for (size_t i = 0; i < net.m->size; i++) g[i] -= lanes[i];
    at_most(distance(g, NULL, net.m->size) / distance(lanes, NULL, net.m->size),
            DOUBLE ? 1e-12 : 1e-5, "gradient of a batch");
    memset(net.m->weights, 0, net.m->size * sizeof(float));
    net_init(&net, &rng);
    net_gradient(&net, batch, 3, lanes);
    for (int l = 0; l <= 2; l++) {
        const Tensor *t = layer(&net, false, l);
        double size = distance(lanes + t->offset, NULL, t->size);
        expect(l ? size == 0 : size > 1e-6);
    }
    expect(net_certify(&net).log10_sound == -INFINITY); // of a first layer of zeros
    free(lanes), free(g), small_net_free(&net);
}

// The certificate is violated by no pair of images, and by no attack. Far away the attack finds
// what it looks for. (Not with ReLU, which may be dead, nor outside of [0, 1].)
static void test_mlp_certificate(void) {
    static const double factors[] = {0.5, 0.9, 1.5, 12};
    for (int i = 0; i < 8; i++) {
        Family family = i % 2 ? ORTHOGONAL : GAUSSIAN;
        Net net = small_net(i / 2 % 2 ? PAPER : TIGHT, 1 + i / 4, family, 1.5, 70 + (uint64_t)i);
        Certificate k = net_certify(&net);
        Score score = measure(&net, &k);
        Space *s = net.spaces;
        double bound = pow(10, k.log10_sound), worst = 0, sorted[IMAGES];
        near(bound, pow(1.5, 2 + i / 4), 2e-3, "constants multiply"); // n^(1/2^14) above
        near(score.accuracy, 1, 0, "labels that the network gave");
        for (int pair = 0; pair < IMAGES - 1; pair++) {
            float images[2][PIXELS], z[2][LABELS];
            for (int j = 0; j < 2; j++) {
                load_image(&net, s, 0, pair + j, NULL);
                memcpy(images[j], s->x[0], sizeof images[j]);
                memcpy(z[j], net_forward(&net, s, 1), sizeof z[j]);
            }
            worst = max(worst, distance(z[0], z[1], LABELS) / sqrt(LABELS) /
                               (distance(images[0], images[1], PIXELS) / sqrt(PIXELS)));
        }
        at_most(worst, bound, "a pair of images against the bound");
        expect(worst > 0);
        memcpy(sorted, net.radii, sizeof sorted);
        qsort(sorted, IMAGES, sizeof *sorted, falling);
        expect(sorted[IMAGES / 2] > 0 && sorted[0] < INFINITY);
        for (size_t f = 0; f < LENGTH(factors); f++) {
            if (THIN > 1 && f % 2 == 0) continue;
            double radius = factors[f] * sorted[IMAGES / 2];
            double proven = certified(&net, radius), held = under_attack(&net, radius);
            at_most(proven, held, "certified and attacked");
            at_most(held, score.accuracy, "attacked and clean");
            if (factors[f] < 1) expect(proven >= 0.5);
            if (factors[f] > 11) expect(proven < 0.5);
            if (factors[f] > 11 && net.n.c.activation == MAXMIN)
                at_most(held, 0.5, "an attack twelve radii away");
        }
        small_net_free(&net);
    }
}

// The program, on six files of a few random images; its budget, its checkpoint, its refusals.
static void test_mlp_program(void) {
    #define NETS "!../mlp train --data cifar --width 6 --epochs 2 --batch 32 "
    static const struct { int status; const char *line, *reason; } refusals[] = {
        {2, "train --data cifar --steps 3", "--steps is not an option"},
        {2, "train --data cifar --lipschitz 3 --cap 2", "--lipschitz chooses the caps"},
        {2, "train --data cifar --lipschitz 3 --constraint hammer", "--lipschitz chooses the caps"},
        {2, "train --data cifar --activation gelu", "--activation does not know \"gelu\""},
        {2, "train --data cifar --preset 145m", "145m is no perceptron"},
        {2, "train --data cifar --lipschitz 1e-300", "--lipschitz 1e-300 is too small"},
        {1, "train --data cifar --out cifar/data_batch_2.bin", "data_batch_2.bin is read, too"},
        {1, "train --data cifar --holdout 200", "images are left to train on"},
        {1, "train --data nowhere", "prepare_data.py --cifar10"},
        {1, "eval --data cifar --model cifar/test_batch.bin", "is not a safetensors file"},
        {1, "train --data cifar --batch 2 --epochs 1 --out cifar", "cifar is not a regular file"},
        {2, "tranquilize", "train, eval or certify"}};
    unsigned char records[30 * RECORD];
    double radius, proven, held, accuracy;
    Rng rng = {9};
    if (!exists("../mlp")) {
        printf("build/mlp is not tested: make it first\n");
        return;
    }
    gives(0, "", "!mkdir -p cifar");
    for (int i = 0; i < 6; i++) {
        char name[64];
        snprintf(name, sizeof name, "cifar/data_batch_%d.bin", i + 1);
        if (i == 5) strcpy(name, "cifar/test_batch.bin");
        for (int j = 0; j < (int)sizeof records; j++)
            records[j] = (unsigned char)rng_below(&rng, j % RECORD ? 256 : LABELS);
        put(name, records, sizeof records);
    }
    gives(0, "certificate\t", NETS "--lipschitz 3 --lr 3 --out a.st");
    at_most(printed("certificate"), 3, "a budget that is held");
    near(printed("l2_constant"), printed("certificate") * sqrt(10 / 3072.0), 1e-4, "in l2");
    near(printed("images"), 30, 0, "images of the test");
    gives(0, "", "!OMP_NUM_THREADS=3 ../mlp train --data cifar --width 6 --epochs 2 --batch 32 "
          "--lipschitz 3 --lr 3 --out b.st");
    expect(same("a.st", "b.st")); // any number of threads
    gives(0, "accuracy_under_attack", "!../mlp certify --data cifar --model a.st");
    accuracy = printed("accuracy");
    const char *row = strstr(output, "\nl2_radius");
    for (int i = 0; i < 6; i++) {
        row = row ? strchr(row + 1, '\n') : NULL;
        expect(row && sscanf(row, "%lf %lf %lf", &radius, &proven, &held) == 3);
        at_most(proven, held, "certified and attacked"), at_most(held, accuracy, "and clean");
    }
    gives(0, "images\t50 held out", NETS "--holdout 50 --optimizer adamw --lr 0.001 --out c.st");
    gives(0, "not constrained", NETS "--preset paper --cap 0 --lr 0.1 --out d.st");
    copy("c.st", "net.st");
    gives(0, "net.st is there already; it is kept as net.st.old", NETS "--lr 0.1 --out net.st");
    expect(same("net.st.old", "c.st") && !same("net.st", "c.st"));
    gives(0, "layers", "!../mlp --help"), expect(!strstr(output, "null"));
    gives(0, "\nl2_radius\tcertified_accuracy\n", "!../mlp eval --data cifar --model c.st");
    for (size_t i = 0; i < LENGTH(refusals); i++)
        gives(refusals[i].status, refusals[i].reason, "!../mlp %s", refusals[i].line);
    put("cifar/test_batch.bin", records, RECORD + 1);
    gives(1, "is not a batch", "!../mlp eval --data cifar --model a.st");
}
