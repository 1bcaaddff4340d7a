// The gzip of many beginnings of one text, by klauspost/compress (BLOCK 0) or pgzip, as skopeo, buildah and umoci call it.
//
//	gzip_many_klauspost LEVEL BLOCK SIZE... < text     for each size: u32 length, little endian, and the blob
package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"strconv"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/pgzip"
)

func encoder(blob io.Writer, level, block int) (io.WriteCloser, error) {
	if block == 0 {
		return gzip.NewWriterLevel(blob, level)
	}
	parallel, err := pgzip.NewWriterLevel(blob, level)
	if err == nil {
		err = parallel.SetConcurrency(block, 2)
	}
	return parallel, err
}

func main() {
	text, _ := io.ReadAll(os.Stdin)
	level, _ := strconv.Atoi(os.Args[1])
	block, _ := strconv.Atoi(os.Args[2])
	for _, size := range os.Args[3:] {
		end, _ := strconv.Atoi(size)
		var blob bytes.Buffer
		writer, err := encoder(&blob, level, block)
		if err != nil {
			panic(err)
		}
		writer.Write(text[:end])
		writer.Close()
		binary.Write(os.Stdout, binary.LittleEndian, uint32(blob.Len()))
		os.Stdout.Write(blob.Bytes())
	}
}
