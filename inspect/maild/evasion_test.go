package maild

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"mailweir/inspect"
)

// parts makes a multipart/mixed of entities, each with its own header.
func parts(entities ...string) string {
	s := crlf("From: a@example.org\nTo: b@example.net\nSubject: x\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=outer\n\n")
	for _, e := range entities {
		s += "--outer\r\n" + e + "\r\n"
	}
	return s + "--outer--\r\n"
}

func entity(header, content string) string { return crlf(header+"\n\n") + content }

// nestedZip packs s n times.
func nestedZip(t *testing.T, n int, name, s string) string {
	for range n {
		s = zipOf(t, name, s)
		name = "inner.zip"
	}
	return s
}

// utf16le writes s as UTF-16, little endian.
func utf16le(s string) string {
	var b bytes.Buffer
	for _, u := range utf16.Encode([]rune(s)) {
		binary.Write(&b, binary.LittleEndian, u)
	}
	return b.String()
}

func utf16be(s string) string {
	var b bytes.Buffer
	for _, u := range utf16.Encode([]rune(s)) {
		binary.Write(&b, binary.BigEndian, u)
	}
	return b.String()
}

// broken64 encodes s with something put in after every n characters.
func broken64(s string, n int, put string) string {
	e := base64.StdEncoding.EncodeToString([]byte(s))
	var b strings.Builder
	for i := 0; i < len(e); i += n {
		b.WriteString(e[i:min(i+n, len(e))])
		if i+n < len(e) {
			b.WriteString(put)
		}
	}
	return b.String()
}

// tarOf makes a tar file of names and contents.
func tarOf(files ...string) string {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		w.WriteHeader(&tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o600})
		io.WriteString(w, files[i+1])
	}
	w.Close()
	return b.String()
}

// packedEICAR holds the test file such that it cannot be seen without unpacking.
func packedEICAR(t *testing.T) string {
	z := zipOf(t, "eicar.com", strings.Repeat(" ", 100)+eicar)
	if strings.Contains(z, "EICAR") {
		t.Fatal("the archive shows what is in it")
	}
	return z
}

// storedZip writes one file without compression, sizes behind it.
func storedZip(name, s string) string {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, _ := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
	io.WriteString(f, s)
	w.Close()
	return b.String()
}

// TestEvasions holds the threat where only one of several ways to read a message shows it.
func TestEvasions(t *testing.T) {
	const attached = "Content-Type: application/octet-stream; name=x.bin\nContent-Disposition: attachment; filename=x.bin\nContent-Transfer-Encoding: base64"
	packed := packedEICAR(t)
	mail := crlf("Foo: bar\nSubject: inner\nContent-Type: multipart/mixed; boundary=in\n\n--in\nContent-Type: application/octet-stream; name=a.zip\nContent-Transfer-Encoding: base64\n\n") + b64(packed) + crlf("\n--in--\n")
	deep := nestedZip(t, 8, "a.zip", packed)
	for _, c := range []struct{ name, message string }{
		{"the same octets first as a text, then as a message", parts(
			entity("Content-Type: text/plain; name=a.txt\nContent-Transfer-Encoding: base64", b64(mail)),
			entity("Content-Type: message/rfc822\nContent-Transfer-Encoding: base64", b64(mail)))},
		{"the same octets first as a text, then as a file of mail", parts(
			entity("Content-Type: text/plain; name=a.txt\nContent-Transfer-Encoding: base64", b64(mail)),
			entity("Content-Type: application/octet-stream; name=a.eml\nContent-Transfer-Encoding: base64", b64(mail)))},
		{"the same archive first too deep, then at the top", parts(entity(attached, b64(deep)), entity(attached, b64(packed)))},
		{"the same message first too deep, then at the top", func() string {
			// The innermost message lies just below the limit, and then comes by itself.
			in := mail
			for range 7 {
				in = crlf("From: a@example.org\nSubject: n\nContent-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n") + b64(in)
			}
			one := func(s string) string {
				return entity("Content-Type: message/rfc822\nContent-Transfer-Encoding: base64", b64(s))
			}
			return parts(one(in), one(mail))
		}()},
		{"a message with two encodings, the second of which counts", parts(
			entity("Content-Type: message/rfc822\nContent-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64", b64(mail)))},
		{"a multipart with two encodings, the second of which counts", crlf("From: a@example.org\nSubject: x\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=in\nContent-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64\n\n") +
			b64(crlf("--in\nContent-Type: application/octet-stream; name=a.zip\nContent-Transfer-Encoding: base64\n\n")+b64(packed)+crlf("\n--in--\n"))},
		{"a message of quoted-printable after 8bit", parts(
			entity("Content-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\nContent-Transfer-Encoding: quoted-printable", strings.ReplaceAll(mail, "=", "=3D")))},

		{"junk within base64", parts(entity(attached, broken64(packed, 7, "*! >\r\n")))},
		{"a padding that some ignore, after one character", parts(entity(attached, broken64(packed, 5, "=")))},
		{"a padding that some ignore, after two characters", parts(entity(attached, broken64(packed, 6, "=")))},
		{"a padding that some ignore, after three characters", parts(entity(attached, broken64(packed, 7, "=")))},
		{"double paddings that some ignore", parts(entity(attached, broken64(packed, 9, "==")))},
		{"a padding that some decode as zero", parts(entity(attached, "QQ=="+b64(packed)))},
		{"a stray character before each line", parts(entity(attached, "A"+strings.ReplaceAll(b64(packed), "\r\n", "\r\nA")))},
		{"a stray character behind each line", parts(entity(attached, strings.ReplaceAll(b64(packed), "\r\n", "A\r\n")+"A"))},
		{"the alphabet for URLs", parts(entity(attached, base64.URLEncoding.EncodeToString([]byte(packed))))},
		{"one character a line", parts(entity(attached, broken64(packed, 1, "\r\n")))},
		{"lines that end in CR", parts(entity(attached, strings.ReplaceAll(b64(packed), "\r\n", "\r")))},
		{"after the last padding", parts(entity(attached, b64("hello, worl")+"\r\n"+b64(packed)))},
		{"base64 that is said to be binary", parts(entity("Content-Type: application/zip; name=a.zip\nContent-Transfer-Encoding: binary", b64(packed)))},
		{"base64 of an unknown name", parts(entity("Content-Type: application/zip; name=a.zip\nContent-Transfer-Encoding: base-64", b64(packed)))},
		{"no encoding at all", parts(entity("Content-Type: application/zip; name=a.zip", b64(packed)))},
		{"NULs within base64", parts(entity(attached, broken64(packed, 8, "\x00")))},

		{"UTF-16, little endian", parts(entity("Content-Type: text/plain; charset=utf-16\nContent-Transfer-Encoding: base64", b64("\xff\xfe"+utf16le("hello "+eicar))))},
		{"UTF-16, big endian, without a mark", parts(entity("Content-Type: text/plain; charset=utf-16be\nContent-Transfer-Encoding: base64", b64(utf16be("hello "+eicar))))},
		{"UTF-7", parts(entity("Content-Type: text/plain; charset=utf-7", "+"+strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(utf16be(eicar))), "=")+"-"))},

		{"stored, sizes behind it", parts(entity(attached, b64(storedZip("a.zip", packed))))},
		{"behind a program", parts(entity(attached, b64("MZ"+strings.Repeat("\x90", 5000)+packed)))},
		{"without a directory", parts(entity(attached, b64(packed[:strings.LastIndex(packed, "PK\x01\x02")+20])))},
		{"tar, behind a broken member", parts(entity(attached, b64(tarOf("a", "hello")[:1024]+strings.Repeat("garbage ", 64)+tarOf("e.zip", packed))))},
		{"joined tar files", parts(entity(attached, b64(tarOf("a", "hello")+tarOf("e.zip", packed))))},
		{"zlib without a header of gzip", parts(entity("Content-Type: application/zip\nContent-Encoding: deflate\nContent-Transfer-Encoding: base64", b64(gz(packed))))},

		{"uuencode behind many others", parts(entity("Content-Type: text/plain", strings.Repeat("begin 644 a\r\n#86)C\r\n`\r\nend\r\n", 150)+uuencode("x.zip", packed)))},
		{"uuencode in a text in quoted-printable", parts(entity("Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable", strings.ReplaceAll(uuencode("x.zip", packed), "=", "=3D")))},
		{"uuencode without an end", parts(entity("Content-Type: text/plain", strings.TrimSuffix(uuencode("x.zip", packed), "`\r\nend\r\n")))},
		{"behind the closing delimiter", parts(entity("Content-Type: text/plain", "hello")) + "--outer\r\n" + entity(attached, b64(packed)) + "\r\n--outer--\r\n"},
		{"a delimiter with text behind it", strings.Replace(parts(entity("Content-Type: text/plain", "hello"), entity(attached, b64(packed))), "--outer\r\nContent-Type: app", "--outer evil\r\nContent-Type: app", 1)},
		{"empty boundary", strings.ReplaceAll(strings.Replace(parts(entity(attached, b64(packed))), "boundary=outer", `boundary=""`, 1), "--outer", "--")},
		{"a part in the preamble", strings.Replace(parts(entity("Content-Type: text/plain", "hello")), "\r\n\r\n--outer", "\r\n\r\n--pre\r\n"+entity(attached, b64(packed))+"\r\n--pre--\r\n\r\n--outer", 1)},
		{"gzip as the encoding", parts(entity("Content-Type: application/octet-stream; name=x.zip\nContent-Transfer-Encoding: x-gzip", gz(packed)))},
		{"signed data", parts(entity("Content-Type: application/pkcs7-mime; name=smime.p7m\nContent-Transfer-Encoding: base64", b64("0\x80\x06\x09*\x86H\x86\xf7\r\x01\x07\x02\xa0\x80"+"From: a@example.org\r\nSubject: x\r\n\r\n"+eicar)))},
		{"behind ten thousand parts", parts(append(slices.Repeat([]string{"\r\nx"}, 25_000), entity(attached, b64(packed)))...)},
		{"behind ten thousand parts of a message within", parts(append(slices.Repeat([]string{"\r\nx"}, 9_990), entity("Content-Type: message/rfc822", strings.ReplaceAll(parts(append(slices.Repeat([]string{"\r\nx"}, 15_000), entity(attached, b64(packed)))...), "outer", "inner")))...)},
		{"under the last of many types", strings.Replace(parts(entity(attached, b64(packed))), "Content-Type: multipart", strings.Repeat("Content-Type: text/plain\r\n", 20)+"Content-Type: multipart", 1)},
		{"behind many parts with two types", parts(append(slices.Repeat([]string{"Content-Type: multipart/mixed; boundary=a; boundary=b\r\n\r\n--a\r\n\r\nx"}, 80), entity("Content-Type: text/plain\nContent-Type: multipart/mixed; boundary=in", "--in\r\n"+entity(attached, b64(packed))+"\r\n--in--\r\n"))...)},
		{"a name alone makes a message of it", parts(entity("Content-Type: application/octet-stream; name=\"a.EML \"\nContent-Transfer-Encoding: base64", b64(mail)))},
		{"a type with a comment makes a message of it", parts(entity("Content-Type: message/(x)rfc822\nContent-Transfer-Encoding: base64", b64(mail)))},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newMailD(t, Config{}).Judge(t.Context(), message(c.message))
			for _, f := range v.Findings {
				if f.Kind == inspect.Threat {
					return
				}
			}
			t.Errorf("%v: %v", v.Action, v.Findings)
		})
	}
}

// uuencode is uuencode(1).
func uuencode(name, s string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "begin 644 %s\r\n", name)
	for len(s) > 0 {
		line := s[:min(45, len(s))]
		s = s[len(line):]
		b.WriteByte(byte(' ' + len(line)))
		for i := 0; i < len(line); i += 3 {
			var g [3]byte
			copy(g[:], line[i:])
			for _, v := range []byte{g[0] >> 2, g[0]<<4&63 | g[1]>>4, g[1]<<2&63 | g[2]>>6, g[2] & 63} {
				if v == 0 {
					v = '`' - ' '
				}
				b.WriteByte(' ' + v)
			}
		}
		b.WriteString("\r\n")
	}
	return b.String() + "`\r\nend\r\n"
}
