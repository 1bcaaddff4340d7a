/* What both directions of a recipe share: gzip_state.h. */
#include "gzip_state.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "deflate_parse.h"

static void init_contexts(recipe_coder *code) {
    range_bits_init((range_bit *)&code->bits, sizeof code->bits / sizeof(range_bit));
    range_bits_init((range_bit *)&code->numbers, sizeof code->numbers / sizeof(range_bit));
}

size_t recipe_code_member_end(recipe_state *state, size_t segment_end, size_t end) {
    uint32_t left = end <= segment_end ? (uint32_t)(end - state->at) + 1 : 0;
    left = code_number(state, &state->code.numbers.member_end, left);
    return left ? state->at + left - 1 : SIZE_MAX;
}

deflate_token recipe_code_correction(recipe_state *state, deflate_token predicted,
                                     deflate_token actual, uint8_t literal) {
    recipe_coder *code = &state->code;
    unsigned was = predicted >> 31;
    if (!code_bit(state, &code->bits.is_match[was], actual >> 31)) {
        return literal;
    }
    int32_t expected = was ? (int32_t)deflate_match_length(predicted) : DEFLATE_MIN_MATCH;
    int32_t length = (int32_t)deflate_match_length(actual);
    if (was && code_bit(state, &code->bits.same_length, length == expected)) {
        length = expected;
    } else {
        length = expected + unfolded(code_number(state, &code->numbers.length, folded(length - expected)));
    }
    uint32_t distance = deflate_match_distance(actual);
    if (was && code_bit(state, &code->bits.same_distance, distance == deflate_match_distance(predicted))) {
        distance = deflate_match_distance(predicted);
    } else {
        distance = code_number(state, &code->numbers.distance, distance - 1) + 1;
    }
    if (length < DEFLATE_MIN_MATCH || length > DEFLATE_MAX_MATCH || distance > DEFLATE_WINDOW) {
        return literal; /* only where the recipe is damaged */
    }
    return deflate_match((uint32_t)length, distance);
}

/* The code lengths of one kind, as differences to those that were predicted. */
static unsigned code_kind(recipe_state *state, unsigned kind, unsigned least, unsigned room,
                          const uint8_t *predicted, unsigned predicted_count, uint8_t *actual,
                          unsigned count) {
    recipe_coder *code = &state->code;
    int32_t change = (int32_t)count - (int32_t)predicted_count;
    change = unfolded(code_number(state, &code->numbers.code_count, folded(change)));
    int32_t got = (int32_t)predicted_count + change;
    count = got < (int32_t)least || got > (int32_t)room ? least : (unsigned)got;
    unsigned context = 1;
    for (unsigned i = 0; i < count; i++) {
        int32_t expected = i < predicted_count ? predicted[i] : 0;
        unsigned same = code_bit(state, &code->bits.same_code_length[kind][context], actual[i] == expected);
        context = same;
        int32_t length = expected;
        if (!same) {
            length += unfolded(1 + code_number(state, &code->numbers.code_length,
                                               folded((int32_t)actual[i] - expected) - 1));
        }
        actual[i] = (uint8_t)(length < 0 || length > DEFLATE_MAX_BITS ? 0 : length);
    }
    return count;
}

void recipe_code_lengths(recipe_state *state, const code_lengths *predicted, code_lengths *actual) {
    actual->literals = code_kind(state, 0, 257, DEFLATE_LITERALS, predicted->literal,
                                 predicted->literals, actual->literal, actual->literals);
    actual->distances = code_kind(state, 1, 1, DEFLATE_DISTANCES, predicted->distance,
                                  predicted->distances, actual->distance, actual->distances);
}

uint64_t recipe_standard_header(recipe_state *state, const code_lengths *lengths) {
    state->scratch.size = 0;
    state->scratch.bits = 0;
    state->scratch.count = 0;
    deflate_write_header(&state->scratch, state->space, state->style, lengths);
    uint64_t bits = state->scratch.size * 8 + state->scratch.count;
    bit_writer_put(&state->scratch, 0, 7);
    return bits;
}

static uint32_t crc32_of(const uint8_t *data, size_t size) {
    uint32_t table[256], crc = UINT32_MAX;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t word = i;
        for (int bit = 0; bit < 8; bit++) {
            word = word >> 1 ^ (word & 1 ? 0xedb88320u : 0);
        }
        table[i] = word;
    }
    for (size_t i = 0; i < size; i++) {
        crc = crc >> 8 ^ table[(crc ^ data[i]) & 255];
    }
    return ~crc;
}

void recipe_code_trailer(recipe_state *state, uint8_t *trailer) {
    uint8_t predicted[PARSE_TRAILER] = {0};
    int is_whole = state->member != SIZE_MAX, is_decoding = state->code.coder.is_decoding;
    if (is_whole) {
        store_le32(predicted, crc32_of(state->data + state->member, state->at - state->member));
        store_le32(predicted + 4, (uint32_t)(state->at - state->member));
    }
    if (is_whole && code_bit(state, &state->code.bits.same_trailer,
                             is_decoding || memcmp(trailer, predicted, PARSE_TRAILER) == 0)) {
        memcpy(trailer, predicted, PARSE_TRAILER);
        return;
    }
    for (unsigned i = 0; i < PARSE_TRAILER; i++) {
        trailer[i] = (uint8_t)range_raw(&state->code.coder, 8, trailer[i]);
    }
}

uint8_t recipe_code_padding(recipe_state *state, unsigned bits, unsigned value) {
    unsigned result = 0;
    for (unsigned i = 0; i < bits; i++) {
        result |= code_bit(state, &state->code.bits.padding[i], (value >> i) & 1) << i;
    }
    return (uint8_t)result;
}

void recipe_begin_member(recipe_state *state, size_t segment_end, size_t end) {
    state->member = state->at;
    state->member_end = recipe_code_member_end(state, segment_end, end);
}

int recipe_begin(recipe_state *state, const model_choice *choice, const uint8_t *data, size_t start,
                 size_t end) {
    init_contexts(&state->code);
    state->style = choice->family == MODEL_ZLIB ? HUFFMAN_ZLIB : HUFFMAN_GO;
    state->data = data;
    state->at = start;
    state->end = end;
    state->member = SIZE_MAX;
    state->space = huffman_new();
    bit_writer_reserve(&state->scratch, HEADER_BYTES);
    return state->space && !state->scratch.failed ? 0 : -1;
}

int recipe_begin_model(recipe_state *state, const model_choice *choice, const model_text *text,
                       int after_literal) {
    size_t end = state->member_end < text->size ? state->member_end : text->size;
    state->model = model_new(choice, text, end, after_literal, state->is_counting);
    state->usual = state->model ? model_block_tokens(state->model) : 0;
    return state->model ? 0 : -1;
}

void recipe_enter_member(recipe_state *state, size_t size) {
    model_begin_member(state->model, state->at,
                       state->member_end < size ? state->member_end : size);
}

size_t recipe_usual_end(const recipe_state *state) {
    size_t end = state->end < state->member_end ? state->end : state->member_end;
    size_t border = model_border(state->model, state->at);
    return border < end ? border : end;
}

void recipe_learn_usual(recipe_state *state, size_t count) {
    if (state->usual != SIZE_MAX && count >= LEAST_USUAL) {
        state->usual = count;
    }
}

void recipe_free(recipe_state *state) {
    model_free(state->model);
    huffman_free(state->space);
    free(state->scratch.bytes);
    free(state->misses);
}
