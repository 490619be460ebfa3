package unpack_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"

	"mailweir/inspect/unpack"
)

// The scanner goes down by calling Formats and Walk for what it has put at rest; Walk counts the levels itself.
func Example() {
	ctx := context.Background()
	budget := unpack.NewBudget(unpack.DefaultLimits(), ctx.Err, func(name, detail string) { fmt.Println("odd:", name, detail) })

	var scan func(path string, body []byte)
	scan = func(path string, body []byte) {
		fmt.Printf("%s: %d octets\n", path, len(body))
		for _, format := range unpack.Formats(bytes.NewReader(body), int64(len(body)), path) {
			err := unpack.Walk(format, bytes.NewReader(body), int64(len(body)), budget, func(m unpack.Member) error {
				if m.Name == "" {
					m.Name = unpack.InnerName(path)
				}
				r, err := m.Open()
				if err != nil { // ErrEncrypted, ErrUnsupported: this member is unchecked, the others are not
					fmt.Println("unchecked:", m.Name, err)
					return nil
				}
				content, err := io.ReadAll(r) // in the scanner: into a spool.File
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if errors.Is(err, unpack.ErrLimit) || errors.Is(err, unpack.ErrBroken) {
					fmt.Println("unchecked:", m.Name, err) // and yet look at what came
				}
				scan(path+"/"+m.Name, content)
				return nil
			})
			if err != nil {
				fmt.Println("unchecked:", path, err)
			}
		}
	}

	var archive bytes.Buffer
	z := gzip.NewWriter(&archive)
	io.WriteString(z, "hello")
	z.Close()
	scan("a.txt.gz", archive.Bytes())
	// Output:
	// a.txt.gz: 29 octets
	// a.txt.gz/a.txt: 5 octets
}
