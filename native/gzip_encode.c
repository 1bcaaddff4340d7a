/* A stretch of gzip to its recipe: gzip_recipe.h. */
#include "gzip_recipe.h"

#include <stdlib.h>
#include <string.h>

#include "gzip_state.h"

static uint32_t bits_at(const uint8_t *data, uint64_t bit, unsigned count) {
    uint32_t value = 0;
    for (unsigned i = 0; i < count; i++, bit++) {
        value |= (uint32_t)((data[bit >> 3] >> (bit & 7)) & 1) << i;
    }
    return value;
}

static int is_header(const recipe_state *state, uint64_t bits, const uint8_t *data,
                     const deflate_event *event) {
    if (bits != event->bit_size) {
        return 0;
    }
    for (uint64_t at = 0; at < bits; at += 8) {
        unsigned count = bits - at < 8 ? (unsigned)(bits - at) : 8;
        if (bits_at(data, event->bit + at, count) != bits_at(state->scratch.bytes, at, count)) {
            return 0;
        }
    }
    return 1;
}

static void encode_block_header(recipe_state *state, const deflate_segment *segment,
                                const deflate_event *event, const deflate_token *tokens) {
    recipe_coder *code = &state->code;
    code_lengths actual = {.literals = 0};
    uint8_t lengths[DEFLATE_LITERALS + DEFLATE_DISTANCES] = {0};
    uint64_t bit = event->bit;
    huffman_lengths(state->space, state->style, tokens, event->tokens, &state->lengths);
    int is_predicted =
        is_header(state, recipe_standard_header(state, &state->lengths), segment->data, event);
    code_bit(state, &code->bits.other_header, !is_predicted);
    if (is_predicted) {
        return;
    }
    deflate_read_lengths(segment->data, segment->size, &bit, lengths, &actual.literals,
                         &actual.distances);
    memcpy(actual.literal, lengths, actual.literals);
    memcpy(actual.distance, lengths + actual.literals, actual.distances);
    int is_standard = is_header(state, recipe_standard_header(state, &actual), segment->data, event);
    code_bit(state, &code->bits.other_form, !is_standard);
    if (is_standard) {
        recipe_code_lengths(state, &state->lengths, &actual);
        return;
    }
    code_number(state, &code->numbers.header_bits, event->bit_size);
    for (uint32_t at = 0; at < event->bit_size; at += 8) {
        unsigned count = event->bit_size - at < 8 ? event->bit_size - at : 8;
        range_raw(&code->coder, count, bits_at(segment->data, event->bit + at, count));
    }
}

/* Whether the block has the tokens that one is expected to have: as many as usual, or up to where blocks end. */
static int is_usual_count(const recipe_state *state, size_t count, size_t plain) {
    size_t end = recipe_usual_end(state), left = end > state->at ? end - state->at : 0;
    return plain == left ? count <= state->usual : plain < left && count == state->usual;
}

static int note_miss(recipe_state *state, size_t count, size_t index, deflate_token predicted) {
    if (count == state->miss_room) {
        size_t room = state->miss_room ? 2 * state->miss_room : 256;
        miss *grown = realloc(state->misses, room * sizeof(miss));
        if (!grown) {
            return -1;
        }
        state->misses = grown;
        state->miss_room = room;
    }
    state->misses[count] = (miss){(uint32_t)index, predicted};
    return 0;
}

static int encode_tokens(recipe_state *state, const deflate_token *tokens, size_t count, size_t plain) {
    recipe_coder *code = &state->code;
    size_t misses = 0;
    unsigned is_usual = (unsigned)is_usual_count(state, count, plain);
    if (!code_bit(state, &code->bits.usual_count, is_usual)) {
        code_number(state, &code->numbers.count, (uint32_t)count);
        recipe_learn_usual(state, count);
    }
    for (size_t i = 0; i < count; i++) {
        i += model_confirm(state->model, &state->at, tokens + i, count - i);
        if (i < count) {
            if (note_miss(state, misses++, i, model_predict(state->model, state->at))) {
                return -1;
            }
            model_correct(state->model, state->at, tokens[i]);
            state->at += deflate_extent(tokens[i]);
        }
    }
    code_number(state, &code->numbers.misses, (uint32_t)misses);
    size_t last = 0;
    for (size_t i = 0; i < misses; i++) {
        const miss *wrong = &state->misses[i];
        deflate_token actual = tokens[wrong->index];
        code_number(state, &code->numbers.run, (uint32_t)(wrong->index - last));
        recipe_code_correction(state, wrong->predicted, actual, 0);
        last = wrong->index + 1;
    }
    return 0;
}

static int encode_block(recipe_state *state, const deflate_segment *segment,
                        const deflate_event *event, const deflate_token *tokens) {
    recipe_coder *code = &state->code;
    code_bit(state, &code->bits.final, event->is_final);
    if (!code_bit(state, &code->bits.dynamic, event->type == DEFLATE_DYNAMIC) &&
        !code_bit(state, &code->bits.fixed, event->type == DEFLATE_FIXED)) {
        code_number(state, &code->numbers.stored, event->plain);
        unsigned padding = (unsigned)(-event->bit & 7);
        recipe_code_padding(state, padding, event->padding);
        model_pass_over(state->model);
        state->at += event->plain;
        return 0;
    }
    if (encode_tokens(state, tokens, event->tokens, event->plain)) {
        return -1;
    }
    if (event->type == DEFLATE_DYNAMIC) {
        encode_block_header(state, segment, event, tokens);
    }
    return 0;
}

static void encode_header(recipe_state *state, const deflate_segment *segment,
                          const deflate_event *event, const uint8_t *header, size_t header_size) {
    const uint8_t *bytes = segment->data + (event->bit >> 3);
    size_t size = event->bit_size >> 3;
    int is_same = size == header_size && memcmp(bytes, header, size) == 0;
    if (!code_bit(state, &state->code.bits.same_header, (unsigned)is_same)) {
        code_number(state, &state->code.numbers.header_size, (uint32_t)size);
        for (size_t i = 0; i < size; i++) {
            range_raw(&state->code.coder, 8, bytes[i]);
        }
    }
}

/* Where the member of the event `index` ends, if its trailer is in this segment. */
static size_t find_member_end(const deflate_segment *segment, size_t index, size_t at) {
    for (; index < segment->event_count; index++) {
        if (segment->events[index].kind == EVENT_TRAILER) {
            return at;
        }
        at += segment->events[index].plain;
    }
    return SIZE_MAX;
}

static int encode_events(recipe_state *state, const deflate_segment *segment,
                         const uint8_t *header, size_t header_size) {
    const deflate_token *tokens = segment->tokens;
    for (size_t i = 0; i < segment->event_count; i++) {
        const deflate_event *event = &segment->events[i];
        code_bit(state, &state->code.bits.more, 1);
        if (event->kind == EVENT_HEADER) {
            encode_header(state, segment, event, header, header_size);
            recipe_begin_member(state, segment->end, find_member_end(segment, i, state->at));
            recipe_enter_member(state, segment->plain_size);
        } else if (event->kind == EVENT_TRAILER) {
            uint8_t trailer[PARSE_TRAILER];
            memcpy(trailer, segment->data + (event->bit >> 3), PARSE_TRAILER);
            recipe_code_padding(state, 7, event->padding);
            recipe_code_trailer(state, trailer);
        } else {
            if (encode_block(state, segment, event, tokens)) {
                return -1;
            }
            tokens += event->tokens;
        }
    }
    code_bit(state, &state->code.bits.more, 0);
    return 0;
}

static int encode_segment(recipe_state *state, const deflate_segment *segment,
                          const model_choice *choice, uint64_t position, unsigned begins,
                          const uint8_t *header, size_t header_size) {
    range_encoder_init(&state->code.coder);
    model_text text = {segment->plain, segment->history, segment->plain_size, position};
    if (recipe_begin(state, choice, segment->plain, segment->history, segment->end)) {
        return -1;
    }
    code_bit(state, &state->code.bits.state[0], begins & GZIP_AT_HEADER);
    code_bit(state, &state->code.bits.state[1], !!(begins & GZIP_AFTER_LITERAL));
    state->member_end = SIZE_MAX;
    if (!(begins & GZIP_AT_HEADER)) {
        state->member_end = recipe_code_member_end(state, segment->end,
                                            find_member_end(segment, 0, state->at));
    }
    if (recipe_begin_model(state, choice, &text, !!(begins & GZIP_AFTER_LITERAL)) ||
        encode_events(state, segment, header, header_size)) {
        return -1;
    }
    range_finish(&state->code.coder);
    return state->code.coder.failed ? -1 : 0;
}

static unsigned next_state(const deflate_segment *segment) {
    if (segment->at_header) {
        return GZIP_AT_HEADER;
    }
    const deflate_event *last = segment->event_count ? &segment->events[segment->event_count - 1] : NULL;
    int is_literal = last && last->kind == EVENT_BLOCK && last->tokens &&
                     !(segment->tokens[segment->token_count - 1] & DEFLATE_MATCH);
    return is_literal ? GZIP_AFTER_LITERAL : 0;
}

int gzip_recipe_encode(const deflate_segment *segment, const model_choice *choice,
                       uint64_t *position, unsigned *begins, const uint8_t *header,
                       size_t header_size, uint8_t **recipe, size_t *recipe_size) {
    recipe_state *state = calloc(1, sizeof *state);
    if (!state) {
        return -1;
    }
    int failed = encode_segment(state, segment, choice, *position, *begins, header, header_size);
    if (recipe_is_unsure(state)) {
        free(state->code.coder.bytes);
        recipe_free(state);
        *state = (recipe_state){.is_counting = 1};
        failed = encode_segment(state, segment, choice, *position, *begins, header, header_size);
    }
    uint64_t before = state->member == SIZE_MAX ? *position : 0;
    size_t from = state->member == SIZE_MAX ? segment->history : state->member;
    if (failed) {
        free(state->code.coder.bytes);
    } else {
        *recipe = state->code.coder.bytes;
        *recipe_size = state->code.coder.size;
        *position = segment->at_header ? 0 : before + (segment->end - from);
        *begins = next_state(segment);
    }
    recipe_free(state);
    free(state);
    return failed;
}
