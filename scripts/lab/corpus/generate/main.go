// Command generate writes the corpus: generate DIRECTORY. What it writes differs from run to run in keys, signatures and
// times of archives, so the corpus is written once and kept.
package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"log"
	mathrand "math/rand/v2"
	"mime/quotedprintable"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"github.com/emersion/go-msgauth/dkim"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: generate DIRECTORY")
	}
	if err := generate(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

// set collects messages by name.
type set struct {
	mail   map[string][]byte
	random *mathrand.ChaCha8
	dir    string
}

func generate(dir string) error {
	s := &set{mail: map[string][]byte{}, random: mathrand.NewChaCha8([32]byte{1}), dir: dir}
	s.texts()
	s.dots()
	s.lines()
	s.structures()
	if err := s.attachments(); err != nil {
		return err
	}
	if err := s.dkim(); err != nil {
		return err
	}
	if err := s.smime(); err != nil {
		return err
	}
	if err := s.pgp(); err != nil {
		return err
	}
	names := keys(s.mail)
	var sums strings.Builder
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n+".eml"), s.mail[n], 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s.eml\n", sha256.Sum256(s.mail[n]), n)
	}
	return os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(sums.String()), 0o644)
}

// add stores a message made of header lines and a body; line ends become CRLF.
func (s *set) add(name, headers, body string) []byte {
	text := fmt.Sprintf("From: Sender <a@client.example>\nTo: b@server.example\nSubject: %s\nDate: Sun, 22 Nov 2026 03:00:00 +0000\nMessage-ID: <%s@client.example>\n%s\n%s", name, name, headers, body)
	m := crlf(text)
	if !bytes.HasSuffix(m, []byte("\r\n")) {
		m = append(m, "\r\n"...)
	}
	s.mail[name] = m
	return m
}

func crlf(text string) []byte {
	return []byte(strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\n", "\r\n"))
}

func (s *set) bytes(n int) []byte {
	b := make([]byte, n)
	_, _ = s.random.Read(b)
	return b
}

func wrapped(b []byte) string {
	t := base64.StdEncoding.EncodeToString(b)
	var out strings.Builder
	for len(t) > 76 {
		out.WriteString(t[:76] + "\n")
		t = t[76:]
	}
	return out.String() + t + "\n"
}

func (s *set) texts() {
	const mime = "MIME-Version: 1.0\n"
	s.add("text-plain", "", "Just a line.\n")
	s.add("text-two-paragraphs", "", "One.\n\nTwo.\n")
	s.add("text-utf8-8bit", mime+"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n", "Grüße, 你好, Привет, مرحبا, 🐟\n")
	s.add("text-latin1-8bit", mime+"Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: 8bit\n", "Gr\xfc\xdfe, caf\xe9, na\xefve\n")
	s.add("text-koi8-8bit", mime+"Content-Type: text/plain; charset=koi8-r\nContent-Transfer-Encoding: 8bit\n", "\xf0\xd2\xc9\xd7\xc5\xd4\n")
	s.add("text-gb18030-8bit", mime+"Content-Type: text/plain; charset=gb18030\nContent-Transfer-Encoding: 8bit\n", "\xc4\xe3\xba\xc3\n")
	s.add("text-iso2022jp", mime+"Content-Type: text/plain; charset=iso-2022-jp\nContent-Transfer-Encoding: 7bit\n", "\x1b$B$3$s$K$A$O\x1b(B\n")
	s.add("text-8bit-undeclared", "", "No MIME at all, yet Gr\xc3\xbc\xc3\x9fe and \xff\xfe.\n")
	s.add("text-8bit-header", "X-Name: Jörg Müller\n", "An 8-bit header field.\n")
	s.add("text-all-high-octets", mime+"Content-Type: text/plain; charset=windows-1252\nContent-Transfer-Encoding: 8bit\n", high())
	s.add("text-control-octets", "", "bell \a, form feed \f, escape \x1b, delete \x7f, vertical tab \v\n")
	var qp bytes.Buffer
	w := quotedprintable.NewWriter(&qp)
	_, _ = w.Write([]byte(strings.Repeat("Größe = 100 %; Maße ähnlich. ", 20) + "\r\n"))
	_ = w.Close()
	s.add("text-quoted-printable", mime+"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n", qp.String())
	s.add("text-base64", mime+"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n", wrapped([]byte(strings.Repeat("Привет ", 40))))
	s.add("text-html", mime+"Content-Type: text/html; charset=utf-8\n", "<html><body><p>Hello &amp; good bye</p></body></html>\n")
	s.add("text-format-flowed", mime+"Content-Type: text/plain; format=flowed; delsp=yes\n", "A line that flows \nand goes on.\n-- \nsignature\n")
	s.add("text-trailing-blanks", "", "blanks   \ntab\t\n \n\t\n   \n")
	s.add("text-empty-lines", "", strings.Repeat("\n", 40))
	s.add("text-empty-body", "", "")
	s.add("text-from-lines", "", "From here on\n>From there\nFrom a@b Sun Nov 22 03:00:00 2026\n")
	s.add("text-uuencode-like", "", "begin 644 nothing.txt\n#0V%T\n`\nend\n")
	s.add("text-bdat-like", "", "BDAT 10 LAST\nQUIT\nRSET\nDATA\nMAIL FROM:<x@y>\n")
	s.add("text-replies-like", "", "250 ok\n354 go\n421 bye\n")
	s.add("text-encoded-words", "X-Words: =?utf-8?Q?Gr=C3=BC=C3=9Fe?= =?utf-8?B?8J+Qnw==?=\n", "Encoded words in a header.\n")
	s.add("text-many-recipients-header", "Cc: "+strings.TrimSuffix(strings.Repeat("someone@server.example,\n ", 60), ",\n ")+"\n", "Many.\n")
}

func high() string {
	b := []byte{}
	for c := 0x80; c <= 0xff; c++ {
		b = append(b, byte(c))
		if c%32 == 31 {
			b = append(b, '\n')
		}
	}
	return string(b)
}

func (s *set) dots() {
	for name, body := range map[string]string{
		"dots-single":        ".\n",
		"dots-double":        "..\n",
		"dots-leading":       ".one\n..two\n...three\n",
		"dots-thousand":      strings.Repeat(".", 998) + "\n",
		"dots-every-line":    strings.Repeat(".\n", 200),
		"dots-with-blanks":   ". \n .\n.\t\n",
		"dots-between-blank": "\n.\n\n.\n\n",
		"dots-last":          "text\n.\n",
		"dots-in-the-middle": "a.b\na.\n.a\n",
		"dots-quoted":        "> .\n> ..\n",
	} {
		s.add(name, "", body)
	}
}

func (s *set) lines() {
	for _, n := range []int{76, 512, 997, 998} {
		s.add(fmt.Sprintf("lines-%d", n), "", strings.Repeat("x", n)+"\nshort\n"+strings.Repeat("y", n)+"\n")
	}
	for _, n := range []int{999, 1000, 1001, 2047, 2048, 2049, 4096, 8192, 20000} {
		s.add(fmt.Sprintf("longlines-%d", n), "", strings.Repeat("x", n)+"\nshort\n"+strings.Repeat(".", n)+"\n")
	}
	s.add("lines-folded-header", "X-Folded: "+strings.Repeat("word\n\tword\n word ", 50)+"\n", "Folded.\n")
	s.add("lines-long-header", "X-Long: "+strings.Repeat("z", 900)+"\n", "Long header.\n")
	var many strings.Builder
	for i := range 300 {
		fmt.Fprintf(&many, "X-Field-%d: value %d\n", i, i)
	}
	s.add("lines-many-headers", many.String(), "Three hundred fields.\n")
	s.add("lines-two-thousand", "", strings.Repeat("line\n", 2000))
}

// part is a body part of a multipart.
func part(headers, body string) string {
	return headers + "\n" + strings.TrimSuffix(body, "\n") + "\n"
}

func multipart(subtype, boundary string, parts ...string) (headers, body string) {
	var b strings.Builder
	b.WriteString("This is a message of several parts.\n")
	for _, p := range parts {
		b.WriteString("--" + boundary + "\n" + p)
	}
	b.WriteString("--" + boundary + "--\n")
	return "MIME-Version: 1.0\nContent-Type: multipart/" + subtype + "; boundary=\"" + boundary + "\"\n", b.String()
}

func (s *set) structures() {
	text := part("Content-Type: text/plain; charset=utf-8\n", "Plain text.\n")
	html := part("Content-Type: text/html; charset=utf-8\n", "<p>HTML</p>\n")
	add := func(name, subtype, boundary string, parts ...string) {
		h, b := multipart(subtype, boundary, parts...)
		s.add(name, h, b)
	}
	add("mime-alternative", "alternative", "alt", text, html)
	add("mime-mixed", "mixed", "mix", text, html, text)
	add("mime-one-part", "mixed", "one", text)
	add("mime-related", "related; type=\"text/html\"", "rel", html, part("Content-Type: image/png\nContent-ID: <i@x>\nContent-Transfer-Encoding: base64\n", wrapped(s.bytes(300))))
	add("mime-boundary-blanks", "mixed", "a b c", text, html)
	add("mime-boundary-70", "mixed", strings.Repeat("=", 70), text, html)
	add("mime-boundary-signs", "mixed", "----=_Part_1'()+_,-./:=?", text, html)
	add("mime-8bit-part", "mixed", "e8", part("Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n", "Grüße\n"))
	add("mime-dots-in-part", "mixed", "dp", part("Content-Type: text/plain\n", ".\n..\n.\n"))
	inner, body := multipart("alternative", "in1", text, html)
	add("mime-nested", "mixed", "out1", part(strings.TrimPrefix(inner, "MIME-Version: 1.0\n"), body), text)
	h, b := "Content-Type: text/plain\n", "the innermost\n"
	for i := range 8 {
		h2, b2 := multipart("mixed", fmt.Sprintf("deep%d", i), part(strings.TrimPrefix(h, "MIME-Version: 1.0\n"), b))
		h, b = h2, b2
	}
	s.add("mime-deep", h, b)
	add("mime-digest", "digest", "dig", part("", "From: x@y\nSubject: one\n\nOne\n"), part("", "From: x@y\nSubject: two\n\nTwo\n"))
	add("mime-rfc822", "mixed", "fwd", text, part("Content-Type: message/rfc822\nContent-Disposition: attachment\n", "From: x@y\nTo: z@y\nSubject: forwarded\n\nForwarded text.\n"))
	add("mime-report", "report; report-type=delivery-status", "rep", text,
		part("Content-Type: message/delivery-status\n", "Reporting-MTA: dns; x\n\nFinal-Recipient: rfc822; b@server.example\nAction: failed\nStatus: 5.1.1\n"),
		part("Content-Type: text/rfc822-headers\n", "From: a@client.example\n"))
	add("mime-calendar", "alternative", "cal", text, part("Content-Type: text/calendar; method=REQUEST\n", "BEGIN:VCALENDAR\nVERSION:2.0\nEND:VCALENDAR\n"))
	add("mime-names-2231", "mixed", "n31", part("Content-Type: application/octet-stream\nContent-Disposition: attachment;\n filename*0*=utf-8''Gr%C3%BC;\n filename*1*=%C3%9Fe.txt\n", "text\n"))
	add("mime-names-2047", "mixed", "n47", part("Content-Type: application/octet-stream; name=\"=?utf-8?Q?Gr=C3=BC=C3=9Fe.txt?=\"\nContent-Disposition: attachment\n", "text\n"))
	add("mime-signed-by-nobody", "signed; micalg=pgp-sha256; protocol=\"application/pgp-signature\"", "pgp", text,
		part("Content-Type: application/pgp-signature; name=\"signature.asc\"\n", "-----BEGIN PGP SIGNATURE-----\n\niQEzBAEBCAAdFiEE\n-----END PGP SIGNATURE-----\n"))
	add("mime-empty-part", "mixed", "emp", "\n", text)
	hh, bb := multipart("mixed", "epi", text)
	s.add("mime-epilogue", hh, bb+"An epilogue.\n.\n")
}

// zipped makes an archive; stored rather than compressed when told so.
func zipped(store bool, files map[string][]byte) ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, n := range keys(files) {
		m := zip.Deflate
		if store {
			m = zip.Store
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: n, Method: m})
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(files[n]); err != nil {
			return nil, err
		}
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func keys(m map[string][]byte) (names []string) {
	for n := range m {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

func tarGz(files map[string][]byte) ([]byte, error) {
	var b bytes.Buffer
	g := gzip.NewWriter(&b)
	t := tar.NewWriter(g)
	for _, n := range keys(files) {
		if err := t.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(files[n]))}); err != nil {
			return nil, err
		}
		if _, err := t.Write(files[n]); err != nil {
			return nil, err
		}
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	if err := g.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func (s *set) attachments() error {
	text := part("Content-Type: text/plain\n", "See attachment.\n")
	attach := func(name, kind, file string, data []byte) {
		h, b := multipart("mixed", "att", text, part(fmt.Sprintf("Content-Type: %s; name=\"%s\"\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment; filename=\"%s\"\n", kind, file, file), wrapped(data)))
		s.add("attach-"+name, h, b)
	}
	for i, n := range []int{0, 1, 2, 3, 56, 57, 58, 1000, 10000, 30000, 60000} {
		attach(fmt.Sprintf("random-%d", n), "application/octet-stream", fmt.Sprintf("r%d.bin", i), s.bytes(n))
	}
	attach("pdf", "application/pdf", "paper.pdf", append([]byte("%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"), s.bytes(500)...))
	attach("png", "image/png", "picture.png", append([]byte("\x89PNG\r\n\x1a\n"), s.bytes(2000)...))
	attach("jpeg", "image/jpeg", "photo.jpg", append([]byte("\xff\xd8\xff\xe0\x00\x10JFIF\x00"), s.bytes(3000)...))
	files := map[string][]byte{"a.txt": []byte("text of a\n"), "dir/b.txt": bytes.Repeat([]byte("text of b "), 100), "c.bin": s.bytes(400)}
	for _, c := range []struct {
		name  string
		store bool
	}{{"zip", false}, {"zip-stored", true}} {
		z, err := zipped(c.store, files)
		if err != nil {
			return err
		}
		attach(c.name, "application/zip", "files.zip", z)
		outer, err := zipped(true, map[string][]byte{"inner.zip": z})
		if err != nil {
			return err
		}
		attach(c.name+"-in-zip", "application/zip", "outer.zip", outer)
	}
	tgz, err := tarGz(files)
	if err != nil {
		return err
	}
	attach("tar-gz", "application/gzip", "files.tar.gz", tgz)
	several := []string{text}
	for i := range 6 {
		several = append(several, part(fmt.Sprintf("Content-Type: application/octet-stream; name=\"s%d\"\nContent-Transfer-Encoding: base64\n", i), wrapped(s.bytes(200*i))))
	}
	h, b := multipart("mixed", "sev", several...)
	s.add("attach-several", h, b)
	return nil
}

// dkim signs messages of several kinds in the ways there are.
func (s *set) dkim() error {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	rsaPublic, err := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	if err != nil {
		return err
	}
	records := fmt.Sprintf("rsa._domainkey.client.example v=DKIM1; k=rsa; p=%s\ned._domainkey.client.example v=DKIM1; k=ed25519; p=%s\n",
		base64.StdEncoding.EncodeToString(rsaPublic), base64.StdEncoding.EncodeToString(edPublic))
	if err := os.WriteFile(filepath.Join(s.dir, "dkim.txt"), []byte(records), 0o644); err != nil {
		return err
	}
	sources := []string{"text-plain", "text-trailing-blanks", "dots-leading", "text-utf8-8bit", "attach-zip", "lines-998", "mime-rfc822"}
	for _, k := range []struct {
		selector string
		key      crypto.Signer
	}{{"rsa", rsaKey}, {"ed", edKey}} {
		for _, c := range []dkim.Canonicalization{dkim.CanonicalizationSimple, dkim.CanonicalizationRelaxed} {
			for i, src := range sources {
				if k.selector == "ed" && i%2 == 1 {
					continue
				}
				var out bytes.Buffer
				err := dkim.Sign(&out, bytes.NewReader(s.mail[src]), &dkim.SignOptions{Domain: "client.example", Selector: k.selector, Signer: k.key,
					HeaderCanonicalization: c, BodyCanonicalization: c, HeaderKeys: []string{"From", "To", "Subject", "Date", "Message-ID"}})
				if err != nil {
					return fmt.Errorf("sign %s: %w", src, err)
				}
				s.mail[fmt.Sprintf("dkim-%s-%s-%s", k.selector, c, src)] = out.Bytes()
			}
		}
	}
	return nil
}

// smime signs by openssl, with the content apart and with it inside.
func (s *set) smime() error {
	tmp, err := os.MkdirTemp("", "smime")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	cert, key := filepath.Join(s.dir, "smime.pem"), filepath.Join(tmp, "key")
	if err := openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "36500",
		"-subj", "/CN=a@client.example", "-addext", "extendedKeyUsage=emailProtection", "-addext", "subjectAltName=email:a@client.example"); err != nil {
		return err
	}
	for name, body := range map[string]string{
		"text": "Content-Type: text/plain\r\n\r\nSigned text.\r\n.\r\nFrom here\r\n",
		"utf8": "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße\r\n",
		"html": "Content-Type: text/html\r\n\r\n<p>trailing   \r\n</p>\r\n",
	} {
		in := filepath.Join(tmp, name)
		if err := os.WriteFile(in, []byte(body), 0o600); err != nil {
			return err
		}
		for kind, opts := range map[string][]string{"detached": {"-binary"}, "opaque": {"-binary", "-nodetach"}} {
			out := in + "-" + kind
			args := append([]string{"smime", "-sign", "-crlfeol", "-signer", cert, "-inkey", key, "-in", in, "-out", out,
				"-from", "a@client.example", "-to", "b@server.example", "-subject", "signed"}, opts...)
			if err := openssl(args...); err != nil {
				return err
			}
			text, err := os.ReadFile(out)
			if err != nil {
				return err
			}
			s.mail["smime-"+kind+"-"+name] = crlf(string(text))
		}
	}
	return nil
}

func openssl(args ...string) error { return run("openssl", args...) }

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, args[0], err, out)
	}
	return nil
}

// pgp signs by gpg: RFC 3156, the first part with its CRLF line ends.
func (s *set) pgp() error {
	home, err := os.MkdirTemp("", "pgp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	gpg := func(args ...string) error {
		return run("gpg", append([]string{"--homedir", home, "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
	}
	if err := gpg("--quick-generate-key", "a@client.example", "ed25519", "sign", "never"); err != nil {
		return err
	}
	if err := gpg("--output", filepath.Join(s.dir, "pgp.gpg"), "--export"); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"text": part("Content-Type: text/plain\n", "Signed text.\n.\n..\nFrom here\ntrailing \n"),
		"utf8": part("Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n", "Grüße\n"),
	} {
		in := filepath.Join(home, name)
		signed := strings.TrimSuffix(string(crlf(text)), "\r\n")
		if err := os.WriteFile(in, []byte(signed), 0o600); err != nil {
			return err
		}
		if err := gpg("--armor", "--output", in+".asc", "--detach-sign", in); err != nil {
			return err
		}
		signature, err := os.ReadFile(in + ".asc")
		if err != nil {
			return err
		}
		h, b := multipart("signed; micalg=pgp-sha512; protocol=\"application/pgp-signature\"", "pgp", strings.TrimSuffix(text, "\n")+"\n",
			part("Content-Type: application/pgp-signature; name=\"signature.asc\"\n", string(signature)))
		s.add("pgpmime-"+name, h, b)
	}
	return nil
}
