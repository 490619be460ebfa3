package maild

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/yeka/zip"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
)

// hostileMails are messages that programs read in different ways; the file is in one of the readings at least.
func hostileMails(t *testing.T) map[string]string {
	t.Helper()
	payload := b64(zipOf(t, "eicar.com", eicar))
	plain := attach("t.zip", "application/zip", "base64", payload)
	bound := plain[strings.Index(plain, "boundary=")+len("boundary="):]
	bound = bound[:strings.Index(bound, "\r\n")]
	change := func(old, with string) string {
		if !strings.Contains(plain, old) {
			t.Fatalf("no %q in the message", old)
		}
		return strings.Replace(plain, old, with, 1)
	}
	return map[string]string{
		"M-001 two Content-Type":                   change("Content-Type: multipart/mixed", "Content-Type: text/plain\r\nContent-Type: multipart/mixed"),
		"M-002 two boundary parameters":            change("boundary="+bound, "boundary=other; boundary="+bound),
		"M-003 a boundary in pieces":               change("boundary="+bound, "boundary*0="+bound[:1]+"; boundary*1="+bound[1:]+"; boundary=other"),
		"M-005 a multipart that is encoded":        change("\r\n\r\n", "\r\nContent-Transfer-Encoding: base64\r\n\r\n"),
		"two transfer encodings":                   change("Content-Transfer-Encoding: base64", "Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64"),
		"no end":                                   strings.TrimSuffix(plain, "--"+bound+"--\r\n"),
		"NUL in the header":                        change("MIME-Version", "MI\x00ME-Version"),
		"a bare CR hides a field":                  change("Subject: x", "Subject: x\rX-Other: y"),
		"a blank line before the header":           "\r\n" + plain,
		"junk in the header":                       change("Subject: x", "Subject: x\r\nthis is no field"),
		"a space before the colon":                 change("Content-Type: multipart", "Content-Type : multipart"),
		"the file is behind the closing delimiter": strings.Replace(plain, "\r\n--"+bound+"\r\nContent-Type: application", "\r\n--"+bound+"--\r\n--"+bound+"\r\nContent-Type: application", 1),
		"base64 with padding inside":               change(payload[:8], payload[:7]+"=\r\n"+payload[7:8]),
	}
}

// singleReading reads out as every program reads it, or fails the test.
func singleReading(t *testing.T, out string) (archive []byte, text string) {
	t.Helper()
	r := strings.NewReader(out)
	for p := range mimetree.Parse(r, int64(len(out)), mimetree.Limits{}).All() {
		if len(p.Others) > 0 || slices.ContainsFunc(p.Odd, mimetree.IsAmbiguous) {
			t.Errorf("part %q can be read otherwise: %v", p.Path, p.Odd)
		}
		b, err := io.ReadAll(p.Decoded(r))
		switch {
		case err != nil:
			t.Fatal(err)
		case p.Name == archiveName && p.Type == "application/zip":
			archive = b
		case p.Kind == mimetree.Leaf:
			text += string(b)
		}
	}
	return archive, text
}

func TestRepackedHostile(t *testing.T) {
	for name, hostile := range hostileMails(t) {
		t.Run(name, func(t *testing.T) {
			d, _ := whole(t, "Plain(secret)", nil)
			m := message(hostile)
			v := d.Scan(context.Background(), m)
			defer v.Done()
			if v.Action != inspect.Modify || v.Edits == nil {
				t.Fatalf("verdict %v %s %v", v.Action, v.Reason, v.Err)
			}
			out := applied(t, m, v)
			archive, text := singleReading(t, out)
			if strings.Contains(text, eicar) {
				t.Error("it is still there")
			}
			z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
			if err != nil || len(z.File) != 1 {
				t.Fatalf("archive: %v", err)
			}
			f := z.File[0]
			if !f.IsEncrypted() {
				t.Error("the archive is open")
			}
			f.SetPassword("secret")
			r, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			if _, err := io.Copy(h, r); err != nil {
				t.Fatal(err)
			}
			want := sha256.Sum256([]byte(hostile))
			if f.Name != "message.eml" { // a part was taken out, in the one way in which it can be read
				want = sha256.Sum256([]byte(zipOf(t, "eicar.com", eicar)))
			}
			if hex.EncodeToString(h.Sum(nil)) != hex.EncodeToString(want[:]) {
				t.Errorf("%s is not what was sent", f.Name)
			}
			// The union of all readings of what was made is clean: nothing but the archive is to be objected to.
			again := d.Judge(context.Background(), message(out))
			for _, x := range again.Findings {
				if x.Kind == inspect.Threat || x.Category == inspect.Ambiguous {
					t.Errorf("in what was made: %+v", x)
				}
			}
		})
	}
}

func TestRepackedTwiceAlike(t *testing.T) {
	for name, hostile := range hostileMails(t) {
		t.Run(name, func(t *testing.T) {
			var outs [2]string
			for i := range outs {
				d, _ := whole(t, "HMAC(secret)", nil)
				m := message(hostile)
				m.ID = []string{"first", "second"}[i] // another connection, another time
				v := d.Scan(context.Background(), m)
				if v.Action != inspect.Modify {
					t.Fatalf("verdict %v %s", v.Action, v.Reason)
				}
				outs[i] = strings.ReplaceAll(applied(t, m, v), v.Quarantine, "ITEM")
				v.Done()
			}
			if outs[0] != outs[1] {
				t.Error("the same message was repacked differently")
			}
		})
	}
}

// goTree and pythonTree write the types of the leaves with the hash of their content.
func goTree(t *testing.T, out string) (tree []string) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return tree
		}
		if err != nil {
			t.Fatal(err)
		}
		kind, _, err := mime.ParseMediaType(p.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		tree = append(tree, kind+" "+p.FileName())
	}
}

const pythonProgram = `
import sys, email, email.policy
m = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.default)
for p in m.walk():
    if p.defects: print("defects", p.defects)
    if not p.is_multipart(): print(p.get_content_type(), p.get_filename() or "")
`

// TestRepackedInOtherPrograms has a repacked message read by readers that are not ours.
func TestRepackedInOtherPrograms(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	for name, hostile := range hostileMails(t) {
		t.Run("in Python email and Go net/mail: "+name, func(t *testing.T) {
			d, _ := whole(t, "None", nil)
			m := message(hostile)
			v := d.Scan(context.Background(), m)
			defer v.Done()
			out := applied(t, m, v)
			ours := goTree(t, out)
			cmd := exec.Command(python, "-c", pythonProgram)
			cmd.Stdin = strings.NewReader(out)
			b, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, b)
			}
			theirs := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
			if !slices.Equal(ours, theirs) || !slices.Contains(ours, "application/zip "+archiveName) {
				t.Errorf("Go sees %q, Python %q", ours, theirs)
			}
		})
	}
}

func TestM103EightBitNeighbour(t *testing.T) {
	neighbour := crlf("Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nGrüße, und mehr  \n\xff\xfe")
	in := strings.Replace(attach("e.com", "application/octet-stream", "base64", b64(eicar)),
		"Content-Type: text/plain\r\n\r\nHello.", neighbour, 1)
	d, _ := whole(t, "None", nil)
	m := message(in)
	v := d.Scan(context.Background(), m)
	defer v.Done()
	if v.Action != inspect.Modify || !strings.Contains(in, neighbour) {
		t.Fatalf("verdict %v %s", v.Action, v.Reason)
	}
	if out := applied(t, m, v); strings.Count(out, neighbour) != 1 {
		t.Errorf("the neighbour is not what it was:\n%q", out)
	}
}
