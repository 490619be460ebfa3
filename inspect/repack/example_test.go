package repack_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
	"mailweir/inspect/repack"
	"mailweir/inspect/spool"
)

func Example() {
	dir, _ := os.MkdirTemp("", "example")
	defer os.RemoveAll(dir)
	pool, err := spool.New(spool.Config{Dir: dir})
	if err != nil {
		fmt.Println(err)
		return
	}
	body := inspect.Bytes(strings.ReplaceAll(`Subject: invoice
Content-Type: multipart/mixed; boundary=b

--b

See the attachment.
--b
Content-Type: application/octet-stream; name=invoice.exe

something harmful
--b--
`, "\n", "\r\n"))
	msg := &inspect.Message{ID: "1", Body: body}
	tree := mimetree.Parse(body, body.Size(), mimetree.Limits{})
	bad := []repack.BadPart{{Part: tree.Children[1], Findings: []inspect.Finding{{Kind: inspect.Threat, Name: "Some.Virus"}}}}

	r := repack.New(repack.Config{Spool: pool, Host: "gateway.example.org"})
	edits, done, err := r.Repack(context.Background(), msg, tree, bad, "")
	if err != nil {
		fmt.Println(err) // the message cannot be made harmless: reject it
		return
	}
	defer done() // Verdict.Close

	// The result can be read at any offset, to scan it again, before a door streams it.
	view, _ := repack.NewView(body, edits)
	for p := range mimetree.Parse(view, view.Size(), mimetree.Limits{}).All() {
		if p.Kind == mimetree.Leaf {
			b, _ := io.ReadAll(p.Decoded(view))
			first, _, _ := strings.Cut(string(b), "\r\n")
			if p.Type == "application/zip" {
				first = p.Name
			}
			fmt.Println(p.Path, p.Type, "|", first)
		}
	}
	// Output:
	// 1 text/plain | See the attachment.
	// 2 text/plain | A harmful attachment was removed from this message.
	// 3 application/zip | quarantine.zip
}
