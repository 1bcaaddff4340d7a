// The gzip of many beginnings of one text, by Go's own compress/gzip.
//
//	gzip_many_go LEVEL SIZE... < text     for each size: u32 length, little endian, and the blob
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"strconv"
)

func main() {
	text, _ := io.ReadAll(os.Stdin)
	level, _ := strconv.Atoi(os.Args[1])
	for _, size := range os.Args[2:] {
		end, _ := strconv.Atoi(size)
		var blob bytes.Buffer
		encoder, err := gzip.NewWriterLevel(&blob, level)
		if err != nil {
			panic(err)
		}
		encoder.Write(text[:end])
		encoder.Close()
		binary.Write(os.Stdout, binary.LittleEndian, uint32(blob.Len()))
		os.Stdout.Write(blob.Bytes())
	}
}
