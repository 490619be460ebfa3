package maild

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mailweir/inspect"
	"mailweir/inspect/engine/builtin"
)

// benchmarkMail is a mail of about size octets: a text and an attachment that does not compress.
func benchmarkMail(size int) string {
	rnd := rand.New(rand.NewPCG(7, 8))
	b := make([]byte, size*3/4)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	e := base64.StdEncoding.EncodeToString(b)
	var s strings.Builder
	for len(e) > 76 {
		s.WriteString(e[:76] + "\r\n")
		e = e[76:]
	}
	return attach("picture.jpg", "image/jpeg", "base64", s.String()+e)
}

// BenchmarkScan measures a clean message with the built-in engine and 1,000 signatures, beside SHA-256 of the same.
func BenchmarkScan(b *testing.B) {
	dir := b.TempDir()
	var sigs strings.Builder
	rnd := rand.New(rand.NewPCG(9, 10))
	for i := range 1000 {
		sig := make([]byte, 24)
		for j := range sig {
			sig[j] = byte(rnd.Uint32())
		}
		fmt.Fprintf(&sigs, "Sig-%d:0:*:%s\n", i, hex.EncodeToString(sig))
	}
	if err := os.WriteFile(filepath.Join(dir, "x.ndb"), []byte(sigs.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	e, err := builtin.Open(builtin.Config{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	pool := testSpool(b)
	d := newMailD(b, Config{Spool: pool, Engines: []inspect.Engine{e}})
	for _, size := range []int{1 << 10, 30 << 10, 1 << 20} {
		content := benchmarkMail(size)
		b.Run(fmt.Sprintf("memory/%d", size), func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			m := message(content)
			for b.Loop() {
				if v := d.Scan(context.Background(), m); v.Action != inspect.Pass {
					b.Fatal(v)
				}
			}
		})
		b.Run(fmt.Sprintf("spool/%d", size), func(b *testing.B) {
			f := pool.Create()
			defer f.Close()
			f.Write([]byte(content))
			m := message("")
			m.Body = f
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			for b.Loop() {
				if v := d.Scan(context.Background(), m); v.Action != inspect.Pass {
					b.Fatal(v)
				}
			}
		})
		b.Run(fmt.Sprintf("sha256/%d", size), func(b *testing.B) {
			data := []byte(content)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				sha256.Sum256(data)
			}
		})
	}
}
