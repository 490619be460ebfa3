package mimetree_test

import (
	"fmt"
	"io"
	"strings"

	"mailweir/inspect/mimetree"
)

func Example() {
	msg := strings.ReplaceAll(`Subject: two parts
Content-Type: multipart/mixed; boundary=b

--b

Hello.
--b
Content-Type: application/octet-stream; name="=?utf-8?q?gr=C3=BC=C3=9Fe.txt?="
Content-Transfer-Encoding: base64

V29ybGQ=
`, "\n", "\r\n")
	body := strings.NewReader(msg)
	for p := range mimetree.Parse(body, int64(len(msg)), mimetree.Limits{}).All() {
		if p.Kind == mimetree.Multipart || p.Kind == mimetree.Message {
			fmt.Println(p.Kind, p.Type, p.Odd)
			continue
		}
		for _, enc := range p.Encodings { // one, unless programs may disagree
			content, _ := io.ReadAll(p.DecodedAs(body, enc))
			fmt.Printf("%s %s %q %q\n", p.Path, p.Type, p.Name, content)
		}
	}
	// Output:
	// multipart multipart/mixed [boundary-missing-end]
	// 1 text/plain "" "Hello."
	// 2 application/octet-stream "grüße.txt" "World"
}

// An encoded message or multipart is decoded into a body of its own and parsed again.
func ExampleParseDecoded() {
	msg := "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nU3ViamVjdDogaW5uZXINCg0KaGVsbG8=\r\n"
	body := strings.NewReader(msg)
	p := mimetree.Parse(body, int64(len(msg)), mimetree.Limits{})
	if p.Encoded() && (p.Kind == mimetree.Multipart || strings.HasPrefix(p.Type, "message/")) {
		content, _ := io.ReadAll(p.Decoded(body)) // in the scanner: into a spool.File
		inner := mimetree.ParseDecoded(p, strings.NewReader(string(content)), int64(len(content)), mimetree.Limits{})
		fmt.Println(inner.Path, inner.Get("Subject"))
	}
	// Output: 1.1 inner
}
