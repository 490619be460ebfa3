package repack

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	yeka "github.com/yeka/zip"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
	"mailweir/inspect/spool"
)

const virus = "this is the virus, or would be"

var virus64 = base64.StdEncoding.EncodeToString([]byte(virus))

func message(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n" }

func part(name string, more ...string) []string {
	return append(append([]string{"--b", "Content-Type: application/octet-stream; name=" + name, "Content-Transfer-Encoding: base64"}, more...), "", virus64)
}

func mixedMessage(parts ...[]string) string {
	l := []string{"From: Ann <ann@example.org>", "Subject: invoice", "Message-ID: <1@example.org>", "MIME-Version: 1.0",
		"Content-Type: multipart/mixed;", "\tboundary=\"b\"", "X-Mailer: keep  me \tas I am", ""}
	for _, p := range parts {
		l = append(l, p...)
	}
	return message(append(l, "--b--")...)
}

func newPool(t testing.TB) *spool.Pool {
	t.Helper()
	p, err := spool.New(spool.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// infected returns every leaf that holds the virus.
func infected(tree *mimetree.Part, body inspect.Body) (bad []BadPart) {
	for p := range tree.All() {
		if p.Kind != mimetree.Leaf {
			continue
		}
		if b, _ := io.ReadAll(p.Decoded(body)); bytes.Contains(b, []byte(virus)) {
			bad = append(bad, BadPart{p, []inspect.Finding{{Kind: inspect.Threat, Name: "Test.Virus-1", Category: inspect.KnownVirus, Path: p.Path}}})
		}
	}
	return bad
}

// repacked repacks in and returns the new message and its tree.
func repacked(t *testing.T, s Settings, in string) (string, *mimetree.Part) {
	t.Helper()
	body := inspect.Bytes(in)
	tree := mimetree.Parse(body, body.Size(), mimetree.Limits{})
	return repackedAs(t, s, body, tree, infected(tree, body))
}

func repackedAs(t *testing.T, s Settings, body inspect.Bytes, tree *mimetree.Part, bad []BadPart) (string, *mimetree.Part) {
	t.Helper()
	pool := newPool(t)
	r := New(Config{Settings: s, Spool: pool, Host: "gw.example.org"})
	var outs []string
	for range 2 {
		edits, done, err := r.Repack(context.Background(), &inspect.Message{ID: fmt.Sprint(rand.Int()), Body: body}, tree, bad, "Q1")
		if err != nil {
			t.Fatal(err)
		}
		stream, size, err := edits.Apply(body)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(stream)
		if err != nil || int64(len(b)) != size {
			t.Fatalf("%d octets of %d, %v", len(b), size, err)
		}
		outs = append(outs, string(b))
		done()
	}
	if outs[0] != outs[1] {
		t.Error("the same message was repacked differently")
	}
	if files, used := pool.Usage(); files != 0 || used != 0 {
		t.Errorf("left in the spool: %d files, %d octets", files, used)
	}
	out := outs[0]
	if strings.Contains(out, virus) || strings.Contains(out, virus64) {
		t.Error("the virus is still there")
	}
	return out, mimetree.Parse(strings.NewReader(out), int64(len(out)), mimetree.Limits{})
}

// shape writes a tree in one line.
func shape(p *mimetree.Part) string {
	if p.Kind == mimetree.Leaf || len(p.Children) == 0 {
		return p.Path + ":" + p.Type
	}
	var c []string
	for _, x := range p.Children {
		c = append(c, shape(x))
	}
	return p.Type + "(" + strings.Join(c, " ") + ")"
}

func content(t *testing.T, in string, tree *mimetree.Part, path string) string {
	t.Helper()
	for p := range tree.All() {
		if p.Path == path {
			b, err := io.ReadAll(p.Decoded(strings.NewReader(in)))
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
	}
	t.Fatalf("no part %s in %s", path, shape(tree))
	return ""
}

// unzip returns the archive's files.
func unzip(t *testing.T, arch, password string) map[string]string {
	t.Helper()
	z, err := yeka.NewReader(strings.NewReader(arch), int64(len(arch)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range z.File {
		if f.IsEncrypted() != (password != "") {
			t.Errorf("%s: encrypted: %v", f.Name, f.IsEncrypted())
		}
		if password != "" {
			f.SetPassword(password)
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[f.Name] = string(b)
	}
	return files
}

// normal checks the form of what was written: 8-bit octets and long lines are the neighbours' own.
func normal(t *testing.T, out string) {
	t.Helper()
	if strings.Count(out, "\r\n") != strings.Count(out, "\n") || strings.Count(out, "\r\n") != strings.Count(out, "\r") || strings.Contains(out, "\x00") {
		t.Error("line ends or NUL")
	}
	for line := range strings.SplitSeq(out, "\r\n") {
		if len(line) > 76 {
			t.Errorf("a line of %d octets: %.90q", len(line), line)
		}
	}
	if _, err := mail.ReadMessage(strings.NewReader(out)); err != nil {
		t.Error(err)
	}
}

func TestLeafForm(t *testing.T) {
	neighbour := []string{"--b", "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit", "", "Grüße \t und   mehr ", ""}
	binary := []string{"--b", "Content-Type: image/png; name=x.png", "Content-Transfer-Encoding: base64", "", "iVBORw0KGgo", "AAAA==", ""}

	t.Run("M-102 clean neighbours are identical after decoding, and before", func(t *testing.T) {
		in := mixedMessage(neighbour, part("bad.exe"), binary, part("worse.exe"), neighbour)
		out, tree := repacked(t, Settings{}, in)
		normal(t, out)
		if want := "multipart/mixed(1:text/plain 2:text/plain 3:image/png 4:text/plain 5:text/plain 6:application/zip)"; shape(tree) != want {
			t.Errorf("shape %s", shape(tree))
		}
		old := mimetree.Parse(strings.NewReader(in), int64(len(in)), mimetree.Limits{})
		for i, path := range []string{"1", "", "3", "", "5"} {
			if path == "" {
				continue
			}
			if a, b := content(t, in, old, path), content(t, out, tree, path); a != b {
				t.Errorf("part %s: %q became %q", path, a, b)
			}
			if a, b := old.Children[i], tree.Children[i]; in[a.Start:a.End] != out[b.Start:b.End] {
				t.Errorf("the octets of part %s changed", path)
			}
		}
		edits, done, err := New(Config{Spool: newPool(t)}).Repack(context.Background(), &inspect.Message{Body: inspect.Bytes(in)}, old, infected(old, inspect.Bytes(in)), "")
		if err != nil || len(edits.List) != 3 { // two notices and, in one edit, the archive: maild knows it by that
			t.Errorf("%d edits, %v", len(edits.List), err)
		}
		done()
		if h := in[:old.BodyStart]; !strings.HasPrefix(out, h) {
			t.Errorf("the header changed: %q", out[:len(h)])
		}
		files := unzip(t, content(t, out, tree, "6"), "")
		if len(files) != 2 || files["bad.exe"] != virus || files["worse.exe"] != virus {
			t.Errorf("archive: %q", files)
		}
		for _, want := range []string{"Test.Virus-1 (KnownVirus)", "in bad.exe", "Subject: invoice", "kept in the quarantine as Q1", "gw.example.org"} {
			if text := content(t, out, tree, "2"); !strings.Contains(text, want) {
				t.Errorf("the notice lacks %q:\n%s", want, text)
			}
		}
	})
	t.Run("last delimiter missing", func(t *testing.T) {
		in := strings.TrimSuffix(mixedMessage(neighbour, part("bad.exe")), "--b--\r\n")
		_, tree := repacked(t, Settings{}, in)
		if want := "multipart/mixed(1:text/plain 2:text/plain 3:application/zip)"; shape(tree) != want || len(tree.Odd) > 0 {
			t.Errorf("shape %s, odd %v", shape(tree), tree.Odd)
		}
	})
	t.Run("epilogue stays behind the archive", func(t *testing.T) {
		out, tree := repacked(t, Settings{}, mixedMessage(part("bad.exe"))+"so long\r\n")
		if want := "multipart/mixed(1:text/plain 2:application/zip epilogue:text/plain)"; shape(tree) != want || !strings.HasSuffix(out, "--b--\r\nso long\r\n") {
			t.Errorf("shape %s", shape(tree))
		}
	})
	t.Run("Content-ID stays", func(t *testing.T) {
		_, tree := repacked(t, Settings{}, mixedMessage(part("bad.exe", "Content-ID: <pic@x>")))
		if id := tree.Children[0].Get("Content-ID"); id != "<pic@x>" {
			t.Errorf("Content-ID %q", id)
		}
	})
	t.Run("inside of an attached message", func(t *testing.T) {
		inner := []string{"--b", "Content-Type: message/rfc822", "", "Subject: inner", "Received: x", "Content-Type: application/x-y; name=v.exe", "Content-Transfer-Encoding: base64", "", virus64}
		out, tree := repacked(t, Settings{}, mixedMessage(neighbour, inner))
		if want := "multipart/mixed(1:text/plain message/rfc822(2.1:text/plain) 3:application/zip)"; shape(tree) != want {
			t.Errorf("shape %s", shape(tree))
		}
		if x := tree.Children[1].Children[0]; x.Get("Subject") != "inner" || x.Get("Received") != "x" {
			t.Errorf("inner header: %v", x.Header)
		}
		if !strings.Contains(content(t, out, tree, "2.1"), "Test.Virus-1") {
			t.Error("no notice inside")
		}
	})
	t.Run("another multipart at the top is wrapped", func(t *testing.T) {
		in := strings.Replace(mixedMessage(neighbour, part("bad.exe")), "multipart/mixed;", "multipart/alternative;", 1)
		out, tree := repacked(t, Settings{}, in)
		normal(t, out)
		if want := "multipart/mixed(multipart/alternative(1.1:text/plain 1.2:text/plain) 2:application/zip)"; shape(tree) != want {
			t.Errorf("shape %s", shape(tree))
		}
	})
	t.Run("same content twice, noticed once", func(t *testing.T) {
		body := inspect.Bytes(mixedMessage(part("a"), part("b")))
		tree := mimetree.Parse(body, body.Size(), mimetree.Limits{})
		_, got := repackedAs(t, Settings{}, body, tree, infected(tree, body)[:1])
		if want := "multipart/mixed(1:text/plain 2:application/zip)"; shape(got) != want {
			t.Errorf("shape %s", shape(got))
		}
	})
}

func TestM106OnlyTopLevelPart(t *testing.T) {
	in := message("Received: by x;", "\tMon", "From: ann@example.org", "Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=", "MIME-Version: 1.0", "Content-Type: application/x-thing; name=\"v.exe\"",
		"Content-Transfer-Encoding: base64", "Content-Disposition: attachment", "X-Odd-Case:  as it  was", "", virus64)
	out, tree := repacked(t, Settings{}, in)
	normal(t, out)
	if want := "multipart/mixed(1:text/plain 2:application/zip)"; shape(tree) != want {
		t.Fatalf("shape %s", shape(tree))
	}
	if !strings.HasPrefix(out, "Received: by x;\r\n\tMon\r\nFrom: ann@example.org\r\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\nX-Odd-Case:  as it  was\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n\tboundary=") {
		t.Errorf("header: %q", out[:300])
	}
	if strings.Count(out[:tree.BodyStart], "Content-") != 1 {
		t.Errorf("old Content-* fields stay: %q", out[:tree.BodyStart])
	}
	if files := unzip(t, content(t, out, tree, "2"), ""); files["v.exe"] != virus || len(files) != 1 {
		t.Errorf("archive: %q", files)
	}
	if text := content(t, out, tree, "1"); !strings.Contains(text, "Subject: grüße") {
		t.Errorf("notice:\n%s", text)
	}
}

// The words that strangers wrote are shown as words: they are not run, and add neither lines nor fields.
func TestM104Notice(t *testing.T) {
	evil := base64.StdEncoding.EncodeToString([]byte("x\r\nBcc: victim@example.org\r\n\r\n--b--\r\n{{.Contacts}} <script>alert(1)</script>\x1b[31m\u202egpj.exe"))
	name := "=?utf-8?B?" + base64.StdEncoding.EncodeToString([]byte("../a\r\nBcc: y\r\n\u202etxt.exe")) + "?="
	in := message("Subject: =?utf-8?B?"+evil+"?=", "From: {{.Host}} <b>x</b>", "Content-Type: multipart/mixed; boundary=b", "",
		"--b", "Content-Type: a/b; name=\""+name+"\"", "Content-Transfer-Encoding: base64", "", virus64, "--b--")
	for _, form := range []string{"Part", "Message"} {
		out, tree := repacked(t, Settings{RepackForm: form, TemplateContacts: "the-contact"}, in)
		if want := "multipart/mixed(1:text/plain 2:application/zip)"; shape(tree) != want {
			t.Errorf("shape %s", shape(tree))
		}
		text := content(t, out, tree, "1")
		var lines []string
		for line := range strings.SplitSeq(text, "\r\n") {
			lines = append(lines, strings.TrimRight(line, "\n"))
		}
		for i, line := range lines {
			if strings.HasPrefix(line, "Bcc") || strings.HasPrefix(line, "--b") || strings.ContainsAny(line, "\r\n\x1b\u202e") {
				t.Errorf("line %d: %q", i, line)
			}
		}
		if strings.Contains(text, "the-contact <script>") || strings.Contains(text, "From:    gw.example.org") || !strings.Contains(text, "{{.Contacts}} <script>") {
			t.Errorf("the template ran what was in the message:\n%s", text)
		}
		if tree.Children[0].Type != "text/plain" { // nothing in it is HTML, so that nothing needs escaping
			t.Errorf("type %s", tree.Children[0].Type)
		}
		for f := range unzip(t, content(t, out, tree, "2"), "") {
			if strings.ContainsAny(f, "/\\\r\n\u202e") {
				t.Errorf("file name %q", f)
			}
		}
	}
	t.Run("own template", func(t *testing.T) {
		dir := t.TempDir()
		os.Mkdir(filepath.Join(dir, "en"), 0o700)
		os.WriteFile(filepath.Join(dir, "en", "repack.txt"), []byte("Achtung, {{.Contacts}}!\n--b--\n"), 0o600)
		out, tree := repacked(t, Settings{TemplatesDir: dir, TemplateContacts: "you"}, in)
		if got := content(t, out, tree, "1"); got != "Achtung, you!\r\n--b--\r\n" {
			t.Errorf("%q", got)
		}
		os.WriteFile(filepath.Join(dir, "en", "repack.txt"), []byte("{{.Nothing}}"), 0o600)
		if err := (&Settings{TemplatesDir: dir}).Check(); err == nil {
			t.Error("Check took a broken template")
		}
	})
}

// Parameters of a type that promises certain parts go with the type.
func TestM107TypedParts(t *testing.T) {
	report := message("Subject: failure", "MIME-Version: 1.0", "Content-Type: multipart/report; report-type=delivery-status; boundary=b", "",
		"--b", "", "It failed.", "--b", "Content-Type: message/delivery-status", "", "Reporting-MTA: dns; x", "", "--b", "Content-Type: message/rfc822", "",
		"Subject: original", "Content-Type: a/b", "Content-Transfer-Encoding: base64", "", virus64, "--b--")
	mdn := strings.NewReplacer("delivery-status", "disposition-notification").Replace(report)
	calendar := message("Subject: come", "Content-Type: multipart/alternative; boundary=b", "", "--b", "", "Come!", "--b",
		"Content-Type: text/calendar; method=REQUEST; name=invite.ics", "Content-Transfer-Encoding: base64", "", virus64, "--b--")
	only := message("Subject: come", "Content-Type: text/calendar; method=REQUEST", "Content-Class: urn:content-classes:calendarmessage", "Content-Transfer-Encoding: base64", "", virus64)
	for _, c := range []struct{ name, in, want string }{
		{"delivery report", report, "multipart/mixed(1:text/plain 2:application/zip)"},
		{"disposition notification", mdn, "multipart/mixed(1:text/plain 2:application/zip)"},
		{"invitation", calendar, "multipart/mixed(multipart/alternative(1.1:text/plain 1.2:text/plain) 2:application/zip)"},
		{"invitation alone", only, "multipart/mixed(1:text/plain 2:application/zip)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, tree := repacked(t, Settings{}, c.in)
			normal(t, out)
			if shape(tree) != c.want {
				t.Errorf("shape %s", shape(tree))
			}
			for p := range tree.All() {
				for _, key := range []string{"report-type", "method"} {
					if _, ok := p.Params[key]; ok {
						t.Errorf("part %s still has %s", p.Path, key)
					}
				}
			}
			if strings.Contains(out, "Content-Class") {
				t.Error("Content-Class stays")
			}
		})
	}
}

func TestWholeForm(t *testing.T) {
	signed := strings.Replace(mixedMessage(part("bad.exe"), []string{"--b", "Content-Type: application/pgp-signature", "", "sig"}), "multipart/mixed;", "multipart/signed; protocol=x;", 1)
	for _, c := range []struct{ name, in string }{
		{"signed", signed},
		{"duplicate type", strings.Replace(mixedMessage(part("a")), "MIME-Version: 1.0", "Content-Type: text/plain", 1)},
		{"two boundaries", strings.Replace(mixedMessage(part("a")), `boundary="b"`, `boundary="b"; boundary=c`, 1)},
		{"junk in the header", strings.Replace(mixedMessage(part("a")), "MIME-Version: 1.0", "junk", 1)},
		{"bare CR in the header", strings.Replace(mixedMessage(part("a")), "MIME-Version: 1.0", "X: y\rContent-Type: text/plain", 1)},
		{"bare LF in the header", strings.Replace(mixedMessage(part("a")), "MIME-Version: 1.0\r\n", "X: y\n", 1) + "--b\r\n"},
		{"NUL in the header", strings.Replace(mixedMessage(part("a")), "MIME-Version: 1.0", "X: \x00y", 1)},
		{"mbox line", "From x\r\n" + mixedMessage(part("a")) + "--b\r\n\r\nagain"},
		{"no blank line", message("Subject: x", "Content-Type: multipart/mixed; boundary=b", "--b", "Content-Transfer-Encoding: base64", "", virus64, "--b--")},
		{"type with a blank before the colon", strings.Replace(mixedMessage(part("a")), "MIME-Version: 1.0", "Content-Type : text/plain", 1)},
		{"parts after the end", mixedMessage(part("a")) + message(part("b")...)},
		{"leading blank line", "\r\n" + mixedMessage(part("a"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, tree := repacked(t, Settings{}, c.in)
			normal(t, out)
			if want := "multipart/mixed(1:text/plain 2:application/zip)"; shape(tree) != want {
				t.Fatalf("shape %s", shape(tree))
			}
			for p := range tree.All() {
				if len(p.Odd) > 0 || len(p.Others) > 0 {
					t.Errorf("part %q: odd %v, %d other readings", p.Path, p.Odd, len(p.Others))
				}
			}
			if files := unzip(t, content(t, out, tree, "2"), ""); files["message.eml"] != c.in || len(files) != 1 {
				t.Error("the archive does not hold the message as it was")
			}
			if strings.HasPrefix(c.in, "From: Ann") && tree.Get("From") != "Ann <ann@example.org>" {
				t.Errorf("From: %q", tree.Get("From"))
			}
		})
	}
	t.Run("asked for", func(t *testing.T) {
		in := mixedMessage(part("a"))
		out, tree := repacked(t, Settings{RepackForm: "Message"}, in)
		if files := unzip(t, content(t, out, tree, "2"), ""); files["message.eml"] != in {
			t.Error("not the whole message")
		}
	})
	t.Run("the whole message is bad", func(t *testing.T) {
		body := inspect.Bytes(mixedMessage(part("a")))
		tree := mimetree.Parse(body, body.Size(), mimetree.Limits{})
		repackedAs(t, Settings{}, body, tree, []BadPart{{nil, []inspect.Finding{{Kind: inspect.Threat, Name: "X"}}}})
	})
}

func TestPasswords(t *testing.T) {
	in := mixedMessage(part("bad.exe"), part("ünfug.exe"))
	for _, c := range []struct{ setting, password string }{
		{"None", ""},
		{"Plain(open sesame)", "open sesame"},
		{"HMAC(secret)", "worked out below"},
	} {
		t.Run(c.setting, func(t *testing.T) {
			var p Password
			if err := p.UnmarshalText([]byte(c.setting)); err != nil {
				t.Fatal(err)
			}
			out, tree := repacked(t, Settings{RepackPassword: p}, in)
			if c.setting == "HMAC(secret)" {
				if !strings.Contains(content(t, out, tree, "1"), "<1@example.org>") {
					t.Error("the notice does not show the id")
				}
				c.password = hmacByTool(t, "secret", "<1@example.org>")
			}
			arch := content(t, out, tree, "3")
			if files := unzip(t, arch, c.password); files["bad.exe"] != virus {
				t.Errorf("archive: %q", files)
			}
			name := filepath.Join(t.TempDir(), "quarantine.zip")
			if err := os.WriteFile(name, []byte(arch), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.password == "" {
				tool(t, "python3", "-c", "import zipfile,sys; z=zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; assert z.read('bad.exe')==b'"+virus+"'", name)
				tool(t, "7z", "t", name)
				return
			}
			tool(t, "7z", "t", "-p"+c.password, name)
			if got := tool(t, "7z", "x", "-so", "-p"+c.password, name, "bad.exe"); got != virus {
				t.Errorf("7z: %q", got)
			}
			if err := exec.Command("7z", "t", "-pwrong", name).Run(); err == nil {
				t.Error("7z took a wrong password")
			}
			if list := tool(t, "7z", "l", "-slt", name); !strings.Contains(list, "AES-256") {
				t.Errorf("not AES-256:\n%s", list)
			}
		})
	}
}

// tool runs a program and returns its output.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// hmacByTool works the password out as an administrator would, with other programs than ours.
func hmacByTool(t *testing.T, secret, id string) string {
	t.Helper()
	return tool(t, "python3", "-c", "import hmac,base64,sys; print(base64.b32encode(hmac.new(sys.argv[1].encode(),sys.argv[2].encode(),'sha256').digest()[:10]).decode().lower(),end='')", secret, id)
}

func TestPasswordSetting(t *testing.T) {
	for _, c := range []struct{ in, out, shown, err string }{
		{"", "None", "None", ""},
		{"none", "None", "None", ""},
		{"plain(x)", "Plain(x)", "Plain(…)", ""},
		{"Plain(a)b(c))", "Plain(a)b(c))", "Plain(…)", ""},
		{"HMAC(s e c)", "HMAC(s e c)", "HMAC(…)", ""},
		{"Plain()", "", "", "Plain() is empty: put the password between the parentheses, or write None"},
		{"HMAC()", "", "", "HMAC() is empty: put the secret between the parentheses, or write None"},
		{"secret", "", "", "want None, Plain(password) or HMAC(secret)"},
		{"Plain(secret", "", "", "want None, Plain(password) or HMAC(secret)"},
		{"Plan(secret)", "", "", "want None, Plain(password) or HMAC(secret)"},
	} {
		var p Password
		err := p.UnmarshalText([]byte(c.in))
		if c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("%q: err = %v", c.in, err)
			}
			continue
		}
		text, _ := p.MarshalText()
		if err != nil || string(text) != c.out || p.String() != c.shown || fmt.Sprintf("%v %+v %#v %s", p, p, p, p) != strings.Join([]string{c.shown, c.shown, c.shown, c.shown}, " ") {
			t.Errorf("%q: %q, %v, %v", c.in, text, p, err)
		}
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "p", p)
		if p.word != "" && strings.Contains(log.String(), "("+p.word+")") {
			t.Errorf("the log shows it: %s", log.String())
		}
	}
}

func TestArchiveLeftOut(t *testing.T) {
	big := make([]byte, 100<<10)
	rand.NewChaCha8([32]byte{3}).Read(big)
	in := mixedMessage(part("a"), []string{"--b", "Content-Transfer-Encoding: base64", "", base64.StdEncoding.EncodeToString(append(big, virus...))})
	out, tree := repacked(t, Settings{RepackMaxArchive: 10 << 10}, in)
	if want := "multipart/mixed(1:text/plain 2:text/plain)"; shape(tree) != want || len(out) > 10<<10 {
		t.Errorf("shape %s, %d octets", shape(tree), len(out))
	}
	if text := content(t, out, tree, "1"); strings.Contains(text, archiveName) || !strings.Contains(text, "quarantine as Q1") {
		t.Errorf("notice:\n%s", text)
	}
}

func TestFullSpoolIsAnError(t *testing.T) {
	pool, err := spool.New(spool.Config{Settings: spool.Settings{SpoolQuota: 100}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	body := inspect.Bytes(mixedMessage(part("a")))
	tree := mimetree.Parse(body, body.Size(), mimetree.Limits{})
	edits, done, err := New(Config{Spool: pool}).Repack(context.Background(), &inspect.Message{Body: body}, tree, infected(tree, body), "")
	if !errors.Is(err, spool.ErrQuota) || edits != nil || done != nil {
		t.Errorf("err = %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := New(Config{Spool: newPool(t)}).Repack(ctx, &inspect.Message{Body: body}, tree, infected(tree, body), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
}

func TestBigPartLeavesMemoryFlat(t *testing.T) {
	big := make([]byte, 6<<20)
	rand.NewChaCha8([32]byte{4}).Read(big)
	copy(big, virus)
	pool := newPool(t)
	f := pool.Create()
	defer f.Close()
	io.WriteString(f, "Subject: big\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	l := &lines{w: f}
	l.Write(big)
	l.flush()
	io.WriteString(f, "\r\n--b--\r\n")
	big = nil
	tree := mimetree.Parse(f, f.Size(), mimetree.Limits{})
	var p Password
	p.UnmarshalText([]byte("Plain(x)"))
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	edits, done, err := New(Config{Settings: Settings{RepackPassword: p}, Spool: pool}).Repack(context.Background(), &inspect.Message{Body: f}, tree,
		[]BadPart{{tree.Children[0], nil}}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 7<<20 { // the part is encoded, decoded, deflated, encrypted, copied
		t.Errorf("%d octets were allocated", n)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 2<<20 {
		t.Errorf("%d octets are held", n)
	}
	v, err := NewView(f, edits)
	if err != nil {
		t.Fatal(err)
	}
	got := mimetree.Parse(v, v.Size(), mimetree.Limits{})
	if want := "multipart/mixed(1:text/plain 2:application/zip)"; shape(got) != want {
		t.Errorf("shape %s", shape(got))
	}
}

func TestView(t *testing.T) {
	body := inspect.Bytes("0123456789")
	e := &inspect.Edits{List: []inspect.Edit{{Start: 0, End: 0, New: inspect.Bytes("<")}, {Start: 2, End: 4, New: inspect.Bytes("xyz")}, {Start: 5, End: 6}, {Start: 10, End: 10, New: inspect.Bytes(">")}}}
	v, err := NewView(body, e)
	if err != nil {
		t.Fatal(err)
	}
	const want = "<01xyz46789>"
	for from := range len(want) + 1 {
		for to := from; to <= len(want)+2; to++ {
			b := make([]byte, to-from)
			n, err := v.ReadAt(b, int64(from))
			if string(b[:n]) != want[from:min(to, len(want))] || (err == io.EOF) != (to > len(want)) {
				t.Fatalf("[%d, %d): %q, %v", from, to, b[:n], err)
			}
		}
	}
}

func TestStandardLibraryReadsThePlainArchive(t *testing.T) {
	out, tree := repacked(t, Settings{}, mixedMessage(part("../../etc/passwd"), part("..\\x.exe"), part("x.exe")))
	arch := content(t, out, tree, "4")
	z, err := zip.NewReader(strings.NewReader(arch), int64(len(arch)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range z.File {
		names = append(names, f.Name)
	}
	if got := strings.Join(names, " "); got != "passwd x.exe 3-x.exe" {
		t.Errorf("names %q", got)
	}
}
