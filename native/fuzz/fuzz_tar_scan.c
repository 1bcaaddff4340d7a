/* Random blocks, with the checksum made right in those that ask for it: no read outside the data, and
 * what was consumed adds up.
 *
 *     input   1 byte: bit i % 8 says whether block i gets a good checksum | data
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../bytes.h"
#include "../tarscan.h"

enum { BLOCK = 512, ROOM = 16 };

static void demand(int truth, const char *what) {
    if (!truth) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void fix_checksum(uint8_t *block) {
    unsigned sum = 0;
    memset(block + 148, ' ', 8);
    for (int i = 0; i < BLOCK; i++) {
        sum += block[i];
    }
    char text[8];
    snprintf(text, sizeof text, "%06o", sum);
    memcpy(block + 148, text, 7);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_size) {
    if (input_size < 1) {
        return 0;
    }
    size_t size = input_size - 1;
    uint8_t *data = malloc(size ? size : 1);
    memcpy(data, input + 1, size);
    for (size_t i = 0; (i + 1) * BLOCK <= size; i++) {
        if (input[0] >> i % 8 & 1) {
            fix_checksum(data + i * BLOCK);
        }
    }
    uint8_t rows[ROOM * TARSCAN_ROW];
    uint64_t next = 0;
    enum tarscan_stop stop;
    do {
        uint64_t from = next;
        size_t count;
        stop = tarscan(data, size, &next, rows, ROOM, &count);
        demand(count <= ROOM && (count == ROOM || stop != TARSCAN_MORE), "more rows than room");
        for (size_t i = 0; i < count; i++) {
            const uint8_t *row = rows + i * TARSCAN_ROW;
            uint64_t header = load_le64(row), length = load_le64(row + 8);
            demand(header == from && header + BLOCK <= size, "a row that is not where it should be");
            demand(load_le32(row + 60) <= 1 && row[59] <= 2, "a column outside its range");
            from = header + BLOCK + (length + BLOCK - 1) / BLOCK * BLOCK;
        }
        demand(next == from, "next is not after the last row");
        demand(stop == TARSCAN_NEED_DATA || next + BLOCK <= size, "stopped outside the data");
    } while (stop == TARSCAN_MORE);
    free(data);
    return 0;
}
