// Fuzzing what lipgpt reads: checkpoints, data, command lines. Needs clang with libFuzzer.
//
//   make fuzz SECONDS=60               each of the three for so long, from seeds of the tests
//   TARGET=checkpoint build/fuzz FILE  one input again, for instance a crash that was found
//                                      (targets: checkpoint, data, arguments)
//
// A refusal is no finding: fail() ends in exit(), which here jumps back; what was allocated or
// opened until then is given back. Anything else that the sanitizers report is one. A request for
// more than MOST bytes fails, as on a small machine.

#define _POSIX_C_SOURCE 200809L
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { BLOCKS = 4096, FILES = 16, MOST = 32 << 20 };
static void *blocks[BLOCKS]; // that are in use
static FILE *files[FILES];
static jmp_buf start;

static _Noreturn void jump_back(int status) { longjmp(start, status + 1); }

static void replace(void **table, int count, void *old, void *new) { // NULL is a free place
    int i = 0;
    while (i < count && table[i] != old) i++;
    if (i == count && !old) abort(); // the tables are too small
    if (i < count) table[i] = new;
}

static void *take(size_t size) {
    void *block = size > MOST ? NULL : malloc(size);
    if (block) replace(blocks, BLOCKS, NULL, block);
    return block;
}

static void give_back(void *block) {
    if (block) replace(blocks, BLOCKS, block, NULL);
    free(block);
}

static FILE *open_tracked(const char *path, const char *mode) {
    FILE *file = fopen(path, mode);
    if (file) replace((void **)files, FILES, NULL, file);
    return file;
}

static int close_tracked(FILE *file) {
    replace((void **)files, FILES, file, NULL);
    return fclose(file);
}

// map_tracked: the bytes of a shard, read: it is unmapped like any other block is given back.
static void *map_tracked(size_t size, int file) {
    void *bytes = take(size);
    return bytes && read(file, bytes, size) == (ssize_t)size ? bytes : MAP_FAILED;
}

#define exit jump_back
#define mmap(where, size, use, flags, file, start) map_tracked(size, file)
#define aligned_alloc(alignment, size) take(size)
#define free give_back
#define fopen open_tracked
#define fclose close_tracked
#define main lipgpt_main
#include "../lipgpt.c"
#undef exit
#undef mmap
#undef free
#undef fopen
#undef fclose
#undef main

static char path[] = "/tmp/lipgpt-fuzz-XXXXXX"; // the input, as a file

static void remove_file(void) { unlink(path); }

// The three targets. What is accepted is used, too.
static void fuzz_checkpoint(void) {
    Data data;
    Progress progress;
    Model *m = checkpoint_load(path, &data, &progress);
    Certificate k;
    certify(m, &k);
    model_free(m);
}

static void fuzz_data(void) {
    Data fresh = load_data(path, "", 4, (Data){0}), again = load_data(path, "", 4, fresh);
    if (again.vocabulary != fresh.vocabulary || again.fingerprint != fresh.fingerprint) abort();
    data_free(&fresh), data_free(&again);
}

static void fuzz_arguments(void) { // a word a line
    static char text[1 << 16];
    char *words[64];
    const char *value[OPTIONS] = {NULL};
    int count = 0;
    FILE *file = fopen(path, "rb");
    size_t size = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[size] = 0;
    if (file) fclose(file);
    for (char *word = strtok(text, "\n"); word && count < 64; word = strtok(NULL, "\n"))
        words[count++] = word;
    int command = count % 4;
    read_arguments(options, OPTIONS, commands[command].bit, count, words, value);
    Config c = preset_config(TIGHT);
    if (commands[command].bit == TRAIN) c = new_settings(value);
    else apply_given(&c, value, false);
    c.vocabulary = 65;
    if (c.lipschitz > 0) apply_budget(&c);
    config_check(&c, 2);
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int descriptor = -1;
    const char *target = getenv("TARGET");
    if (descriptor < 0) descriptor = mkstemp(path), atexit(remove_file);
    if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, data, size, 0) != (ssize_t)size)
        abort();
    if (setjmp(start) == 0) {
        if (target && !strcmp(target, "data")) fuzz_data();
        else if (target && !strcmp(target, "arguments")) fuzz_arguments();
        else fuzz_checkpoint();
    }
    for (int i = 0; i < FILES; i++)
        if (files[i]) fclose(files[i]), files[i] = NULL;
    for (int i = 0; i < BLOCKS; i++) free(blocks[i]), blocks[i] = NULL;
    return 0;
}

// Most changes go to a checkpoint's header, and its length is set right: otherwise hardly any input
// would come further than that.
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    static uint8_t header[1 << 16], rest[1 << 16];
    uint64_t length = 0;
    if (size > 8) memcpy(&length, data, 8);
    size_t left = size - 8 - (size_t)length; // bytes of data, which stay
    if (size <= 8 || length > size - 8 || length > sizeof header / 2 || left > sizeof rest ||
        most < 16 + left || seed % 8 == 0)
        return LLVMFuzzerMutate(data, size, most);
    memcpy(header, data + 8, (size_t)length), memcpy(rest, data + 8 + length, left);
    size_t room = most - 8 - left < sizeof header ? most - 8 - left : sizeof header;
    length = LLVMFuzzerMutate(header, (size_t)length, room);
    memcpy(data, &length, 8), memcpy(data + 8, header, (size_t)length);
    memcpy(data + 8 + length, rest, left);
    return 8 + (size_t)length + left;
}
