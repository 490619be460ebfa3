package dot_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"mailweir/proxy/dot"
)

func ExampleReader() {
	in := bufio.NewReader(strings.NewReader("..stuffed\r\n.\r\nQUIT\r\n"))
	content, err := io.ReadAll(dot.NewReader(in))
	rest, _ := in.ReadString('\n')
	fmt.Printf("%q %v %q\n", content, err, rest)
	// Output: ".stuffed\r\n" <nil> "QUIT\r\n"
}

func ExampleInfo() {
	r := dot.NewReader(bufio.NewReader(strings.NewReader("text\n.\r\nMAIL FROM:<evil>\r\n.\r\n")))
	err := r.Drain() // to the true end, whatever comes before
	fmt.Println(r.Info().EODLike, r.Info().Exact(), err)
	// Output: 1 false <nil>
}

func ExampleWriter() {
	var out bytes.Buffer
	w := dot.NewWriter(&out, nil)
	io.WriteString(w, ".x\r\n")
	fmt.Println(w.Finish(false))
	fmt.Printf("%q\n", out.String())

	w = dot.NewWriter(io.Discard, nil)
	_, err := io.WriteString(w, "a\n.\r\n")
	fmt.Println(errors.Is(err, dot.ErrAmbiguous))
	// Output:
	// <nil>
	// "..x\r\n.\r\n"
	// true
}

func ExampleView() {
	r := dot.NewReader(bufio.NewReader(strings.NewReader(".x\r\n.\r\n")))
	content, _ := io.ReadAll(r)
	v := r.Info().DotsKept(bytes.NewReader(content))
	kept, _ := io.ReadAll(io.NewSectionReader(v, 0, v.Size()))
	fmt.Printf("%q %q\n", content, kept)
	// Output: "x\r\n" ".x\r\n"
}
