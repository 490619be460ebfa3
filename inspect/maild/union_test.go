package maild

import (
	"fmt"
	"strings"
	"testing"

	"mailweir/inspect"
)

// class says what an ambiguity is to a message that is clean otherwise: see interception.md 6.1.
type class byte

const (
	benign  class = 'B' // deployed programs write such mail: nothing is reported as ambiguous
	hostile class = 'H' // reported as ambiguous
	either  class = '?' // nothing is asked
)

// trick hides a file in a message: write puts it there.
type trick struct {
	row   string // of interception.md
	name  string
	class class
	write func(file string) string
}

// lf64 is base64 in lines that end in LF.
func lf64(s string) string { return strings.ReplaceAll(b64(s), "\r\n", "\n") }

// file is the entity that all tricks hide: an attachment.
func fileEntity(z string) string {
	return "Content-Type: application/zip; name=x.zip\nContent-Transfer-Encoding: base64\n\n" + lf64(z) + "\n"
}

const helloEntity = "Content-Type: text/plain\n\nhello\n"

// headed puts the header of a message before s.
func headed(s string) string {
	return "From: a@example.org\nTo: b@example.net\nSubject: x\nMIME-Version: 1.0\n" + s
}

// mixed is a multipart/mixed with the delimiter b, of entities.
func mixed(contentType, b string, entities ...string) string {
	s := headed(contentType + "\n\n")
	for _, e := range entities {
		s += "--" + b + "\n" + e
	}
	return s + "--" + b + "--\n"
}

// onePart makes a message whose only part has that header, and a body.
func onePart(header, body string) string {
	return mixed("Content-Type: multipart/mixed; boundary=b", "b", helloEntity, header+"\n\n"+body+"\n")
}

func attached64(z string) string { return onePart(attachedHeader, lf64(z)) }

const attachedHeader = "Content-Type: application/octet-stream; name=x.bin\nContent-Disposition: attachment; filename=x.bin\nContent-Transfer-Encoding: base64"

// under makes tricks of a Content-Type, with the file under each of the delimiters.
func under(row, name string, c class, contentType string, delimiters ...string) (out []trick) {
	for _, d := range delimiters {
		short := d
		if len(short) > 40 {
			short = short[:40]
		}
		out = append(out, trick{row, fmt.Sprintf("%s, under %q", name, short), c, func(z string) string {
			return crlf(mixed(contentType, d, helloEntity, fileEntity(z)))
		}})
	}
	return out
}

// judged looks at a message with the builtin engine.
func judged(t *testing.T, s string) inspect.Verdict {
	t.Helper()
	d := newMailD(t, Config{})
	return d.Judge(t.Context(), message(s))
}

func kinds(v inspect.Verdict) (threat, ambiguous bool, names []string) {
	for _, f := range v.Findings {
		threat = threat || f.Kind == inspect.Threat
		if f.Kind == inspect.Unchecked && f.Category == inspect.Ambiguous {
			ambiguous = true
		}
		names = append(names, f.Kind+":"+f.Name+"@"+f.Path)
	}
	return
}

// try plays a trick with a threat and with a clean file.
func try(t *testing.T, bad, clean string, k trick) {
	t.Run(k.row+" "+k.name, func(t *testing.T) {
		v := judged(t, k.write(bad))
		if threat, _, names := kinds(v); !threat {
			t.Errorf("not found: %v %v", v.Action, names)
		}
		v = judged(t, k.write(clean))
		threat, ambiguous, names := kinds(v)
		if threat || v.Action != inspect.Pass || v.Err != nil {
			t.Errorf("clean, and yet: %v %v %v", v.Action, names, v.Err)
		}
		if k.class == hostile && !ambiguous {
			t.Errorf("not reported as ambiguous: %v", names)
		}
		if k.class == benign && ambiguous {
			t.Errorf("reported as ambiguous: %v", names)
		}
	})
}

func tryAll(t *testing.T, tricks []trick) {
	bad, clean := packedEICAR(t), zipOf(t, "hello.txt", strings.Repeat("hello ", 40))
	for _, k := range tricks {
		try(t, bad, clean, k)
	}
}
