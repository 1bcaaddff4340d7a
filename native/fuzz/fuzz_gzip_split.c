/* Any bytes as gzip: what is split joins to the same bits, segment by segment; what is not is refused. Nothing is read
 * or written outside the buffers.
 *
 *     input   u8 model | u8: wanted plain bytes in units of 64 | data
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../gzip_recipe.h"
#include "../scratch.h"

static const model_choice MODELS[] = {
    {MODEL_ZLIB, 1, 0},      {MODEL_ZLIB, 6, 0},       {MODEL_ZLIB, 9, 4096},       {MODEL_ZLIB, 2, 4096},
    {MODEL_GO, 2, 0},        {MODEL_GO, 6, 0},         {MODEL_GO_FAST, 1, 0},       {MODEL_KLAUSPOST, 1, 0},
    {MODEL_KLAUSPOST, 5, 0}, {MODEL_KLAUSPOST, 6, 0},  {MODEL_KLAUSPOST, 5, 70000}, {MODEL_KLAUSPOST, 15, 4096},
    {MODEL_GO, 9, 0},        {MODEL_KLAUSPOST, 25, 0},
};

enum { MODEL_COUNT = sizeof MODELS / sizeof *MODELS, HISTORY = 128 << 10, AHEAD = 512 };

static void demand(int truth, const char *what) {
    if (!truth) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* The bits of the segment, in the input and as joined, are the same. */
static void compare(const uint8_t *data, uint64_t bit, uint64_t bits, const uint8_t *joined) {
    const uint8_t *from = data + (bit >> 3);
    unsigned first = bit & 7;
    for (uint64_t i = 0; i < bits; i++) {
        uint64_t at = first + i;
        demand(((from[at >> 3] ^ joined[at >> 3]) >> (at & 7) & 1) == 0, "another bit");
    }
}

static void join(const deflate_segment *segment, const model_choice *choice, uint64_t position,
                 uint64_t bit, const uint8_t *header, size_t header_size, const uint8_t *recipe,
                 size_t recipe_size) {
    uint8_t *text = malloc(segment->plain_size + 1); /* exactly as long as it is: for the sanitizer */
    memcpy(text, segment->plain, segment->plain_size);
    gzip_join job = {*choice, {text, segment->history, segment->plain_size, position}, segment->end,
                     header, header_size, recipe, recipe_size, (unsigned)(bit & 7),
                     segment->bit - bit, NULL, 0};
    demand(gzip_recipe_join(&job) == 0, "a recipe that does not join");
    compare(segment->data, bit, segment->bit - bit, job.bytes);
    free(job.bytes);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_size) {
    if (input_size < 2) {
        return 0;
    }
    const model_choice *choice = &MODELS[input[0] % MODEL_COUNT];
    size_t size = input_size - 2, known = 0, wanted = 64 * ((size_t)input[1] + 1), header_size;
    uint8_t *data = malloc(size + 1), *plain = malloc(HISTORY);
    memcpy(data, input + 2, size);
    header_size = size < 10 ? size : 10;
    uint64_t bit = 0, position = 0;
    unsigned state = GZIP_AT_HEADER;
    for (int segments = 0; segments < 64; segments++) {
        deflate_segment segment = {.data = data, .size = size, .is_last = 1, .bit = bit,
                                   .at_header = state & GZIP_AT_HEADER, .history = known,
                                   .floor = position < known ? known - (size_t)position : 0,
                                   .wanted = wanted, .ahead = AHEAD};
        segment.plain = scratch_take(known + 64, &segment.plain_room);
        memcpy(segment.plain, plain, known);
        uint8_t *recipe = NULL;
        size_t recipe_size = 0;
        uint64_t before = position;
        enum deflate_parse_status status = deflate_parse(&segment);
        demand(status != PARSE_NEED_DATA, "the last data needs more");
        int is_over = status != PARSE_OK || segment.bit == bit;
        if (!is_over) {
            demand(segment.bit <= (uint64_t)size * 8, "behind the end");
            demand(gzip_recipe_encode(&segment, choice, &position, &state, data, header_size, &recipe,
                                      &recipe_size) == 0, "no memory");
            join(&segment, choice, before, bit, data, header_size, recipe, recipe_size);
            bit = segment.bit;
            size_t from = segment.end > HISTORY ? segment.end - HISTORY : 0;
            known = segment.end - from;
            memcpy(plain, segment.plain + from, known);
        }
        free(recipe);
        deflate_segment_free(&segment);
        if (is_over) {
            break;
        }
    }
    free(plain);
    free(data);
    return 0;
}
