package mimetree

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/quotedprintable"
	"strings"
	"testing"
)

// lines folds s at 76 columns with CRLF.
func lines(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		n := min(76, len(s))
		b.WriteString(s[:n])
		b.WriteString("\r\n")
		s = s[n:]
	}
	return b.String()
}

func octets(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{2}).Read(b)
	return b
}

func sample(size int) []byte {
	return []byte(message("From: a@example.org", "Subject: x", "MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=\"=_b\"", "",
		"--=_b", "Content-Type: text/plain; charset=utf-8", "", strings.Repeat("Some words - and a few more of them.\r\n", 20),
		"--=_b", "Content-Type: application/octet-stream; name=a.bin", "Content-Transfer-Encoding: base64", "",
		lines(base64.StdEncoding.EncodeToString(octets(size*3/4)))+"--=_b--"))
}

func BenchmarkParse(b *testing.B) {
	for _, size := range []int{2 << 10, 30 << 10, 1 << 20, 25 << 20} {
		b.Run(fmt.Sprint(size>>10, "K"), func(b *testing.B) {
			s := sample(size)
			r := bytes.NewReader(s)
			b.SetBytes(int64(len(s)))
			b.ReportAllocs()
			for b.Loop() {
				Parse(r, int64(len(s)), Limits{})
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	raw := octets(3 << 20)
	var qp bytes.Buffer
	w := quotedprintable.NewWriter(&qp)
	io.WriteString(w, strings.Repeat("Grüße aus dem Süden, wo die Äpfel wachsen und = nicht selten ist.\r\n", 10_000))
	w.Close()
	for _, c := range []struct{ name, enc, in string }{
		{"base64 76 CRLF", "base64", lines(base64.StdEncoding.EncodeToString(raw))},
		{"base64 unbroken", "base64", base64.StdEncoding.EncodeToString(raw)},
		{"quoted-printable", "quoted-printable", qp.String()},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := strings.NewReader(c.in)
			b.SetBytes(int64(len(c.in)))
			b.ReportAllocs()
			for b.Loop() {
				newDecoder(r, 0, int64(len(c.in)), c.enc).WriteTo(io.Discard)
			}
		})
	}
	b.Run("std base64 76 CRLF in memory", func(b *testing.B) {
		in := []byte(lines(base64.StdEncoding.EncodeToString(raw)))
		out := make([]byte, len(in))
		b.SetBytes(int64(len(in)))
		for b.Loop() {
			base64.StdEncoding.Decode(out, in)
		}
	})
}

func BenchmarkWalkDecodeSum(b *testing.B) {
	s := sample(1 << 20)
	b.SetBytes(int64(len(s)))
	for b.Loop() {
		walkSum(s)
	}
}

func BenchmarkFindUU(b *testing.B) {
	for name, s := range map[string][]byte{"octets": octets(1 << 20), "text": []byte(strings.Repeat("It begins with the beginning, being a number of beans - and bends.\r\n", 15_000))} {
		b.Run(name, func(b *testing.B) {
			r := bytes.NewReader(s)
			b.SetBytes(int64(len(s)))
			for b.Loop() {
				FindUU(r, 0, int64(len(s)), 0)
			}
		})
	}
}
