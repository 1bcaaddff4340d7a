/* Any bytes as a recipe, over any text: it joins or is refused, within the size that it was said to have.
 *
 *     input   u8 model | u8 first bit, state | u16 text bytes | u16 start | text | recipe
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../gzip_recipe.h"

static const model_choice MODELS[] = {
    {MODEL_ZLIB, 1, 0},      {MODEL_ZLIB, 6, 0},      {MODEL_ZLIB, 9, 256},       {MODEL_ZLIB, 2, 256},
    {MODEL_GO, 2, 0},        {MODEL_GO, 6, 0},        {MODEL_GO_FAST, 1, 0},      {MODEL_KLAUSPOST, 1, 0},
    {MODEL_KLAUSPOST, 5, 0}, {MODEL_KLAUSPOST, 6, 0}, {MODEL_KLAUSPOST, 5, 300},  {MODEL_KLAUSPOST, 15, 0},
};

enum { MODEL_COUNT = sizeof MODELS / sizeof *MODELS };

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_size) {
    if (input_size < 6) {
        return 0;
    }
    size_t rest = input_size - 6, text_size = (size_t)(input[2] | input[3] << 8);
    text_size = text_size < rest ? text_size : rest;
    size_t start = (size_t)(input[4] | input[5] << 8);
    start = start < text_size ? start : text_size;
    size_t recipe_size = rest - text_size;
    uint8_t *text = malloc(text_size + 1), *recipe = malloc(recipe_size + 1);
    memcpy(text, input + 6, text_size);
    memcpy(recipe, input + 6 + text_size, recipe_size);
    size_t end = text_size - (text_size - start) / 8;
    gzip_join job = {MODELS[input[0] % MODEL_COUNT],
                     {text, start, text_size, input[1] & 8 ? start : (uint64_t)(input[1] >> 4) << 12},
                     end, text, text_size < 10 ? text_size : 10, recipe, recipe_size,
                     input[1] & 7, 8 * 100000, NULL, 0};
    if (gzip_recipe_join(&job) == 0) {
        free(job.bytes);
    }
    free(recipe);
    free(text);
    return 0;
}
