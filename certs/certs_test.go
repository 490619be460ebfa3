package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

func openTest(t testing.TB) (*Authority, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "certs")
	a, err := Open(dir, "gw.test")
	if err != nil {
		t.Fatal(err)
	}
	return a, dir
}

func TestT046(t *testing.T) {
	a, dir := openTest(t)
	t.Run("T-046 key files are private, the certificate is public", func(t *testing.T) {
		for name, mode := range map[string]os.FileMode{keyFile: 0o600, untrustedFile: 0o600, certFile: 0o644} {
			st, err := os.Stat(filepath.Join(dir, name))
			if err != nil || st.Mode().Perm() != mode {
				t.Errorf("%s: %v, %v; want mode %v", name, st, err, mode)
			}
		}
	})
	t.Run("T-046 two installs have different keys and serials", func(t *testing.T) {
		b, _ := openTest(t)
		if samePublic(a.trusted.key.Public(), b.trusted.key.Public()) || samePublic(a.trusted.key.Public(), a.untrusted.key.Public()) {
			t.Error("two authorities share a key")
		}
		if a.trusted.cert.SerialNumber.Cmp(b.trusted.cert.SerialNumber) == 0 {
			t.Error("two authorities share a serial number")
		}
		if a.trusted.cert.Subject.CommonName == b.trusted.cert.Subject.CommonName {
			t.Error("two authorities share a name")
		}
	})
	t.Run("T-046 name says host", func(t *testing.T) {
		if cn := a.trusted.cert.Subject.CommonName; !strings.HasPrefix(cn, "mailweir CA gw.test ") || len(cn) > 64 {
			t.Errorf("name %q", cn)
		}
		if cn := a.untrusted.cert.Subject.CommonName; !strings.Contains(cn, "UNTRUSTED") {
			t.Errorf("name %q", cn)
		}
	})
	t.Run("T-046 a program contains no key", func(t *testing.T) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(exe)
		if err != nil {
			t.Fatal(err)
		}
		if m := regexp.MustCompile(`PRIVATE KEY-----\n[A-Za-z0-9+/]{40}`).Find(data); m != nil {
			t.Errorf("found %q", m)
		}
		own, err := os.ReadFile(filepath.Join(dir, keyFile))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := pem.Decode(own)
		if bytes.Contains(data, b.Bytes) {
			t.Error("the program contains this authority's key")
		}
	})
}

func TestOpenAgain(t *testing.T) {
	a, dir := openTest(t)
	b, err := Open(dir, "renamed.test")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.PEM(), b.PEM()) || !a.untrusted.cert.Equal(b.untrusted.cert) {
		t.Error("a second start has other certificates")
	}
	got, err := ReadCertificate(dir)
	if err != nil || !bytes.Equal(got, a.PEM()) {
		t.Errorf("ReadCertificate: %v\n%s", err, got)
	}
	block, _ := pem.Decode(a.PEM())
	if !bytes.Equal(block.Bytes, a.DER()) {
		t.Error("PEM and DER differ")
	}
	if cs := a.Certificates(); len(cs) != 2 || !cs[0].IsCA || !cs[1].IsCA {
		t.Error("Certificates does not list both")
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestOpenConcurrently(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	pems := make([]string, 16)
	for i := range pems {
		wg.Go(func() {
			a, err := Open(dir, fmt.Sprint("host", i))
			if err != nil {
				t.Error(err)
				return
			}
			pems[i] = string(a.PEM()) + string(encodePEM(a.untrusted.cert))
		})
	}
	wg.Wait()
	for _, p := range pems {
		if p != pems[0] {
			t.Fatal("two authorities were made")
		}
	}
}

// TestOpenDamaged: whatever is half there is an error that names the file and the way out, and nothing is replaced.
func TestOpenDamaged(t *testing.T) {
	_, other := openTest(t)
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   string
	}{
		{"key gone", func(t *testing.T, dir string) { remove(t, dir, keyFile) }, "restore the key"},
		{"key empty", func(t *testing.T, dir string) { write(t, dir, keyFile, nil) }, "holds no private key"},
		{"key cut", func(t *testing.T, dir string) {
			data := read(t, dir, keyFile)
			write(t, dir, keyFile, data[:bytes.Index(data, []byte("-----BEGIN CERT"))])
		}, "holds no certificate"},
		{"key of another", func(t *testing.T, dir string) {
			k, _ := pem.Decode(read(t, other, keyFile))
			_, c := pem.Decode(read(t, dir, keyFile))
			write(t, dir, keyFile, append(pem.EncodeToMemory(k), c...))
		}, "do not belong together"},
		{"garbage in the key", func(t *testing.T, dir string) {
			write(t, dir, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))
		}, "cannot be read"},
		{"certificate of another", func(t *testing.T, dir string) { write(t, dir, certFile, read(t, other, certFile)) }, "is not the certificate of"},
		{"key readable", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, keyFile), 0o640); err != nil {
				t.Fatal(err)
			}
		}, "chmod 600"},
		{"untrusted empty", func(t *testing.T, dir string) { write(t, dir, untrustedFile, nil) }, "holds no private key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, dir := openTest(t)
			c.damage(t, dir)
			before := snapshot(t, dir)
			_, err := Open(dir, "gw.test")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if after := snapshot(t, dir); after != before {
				t.Errorf("files changed:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
	t.Run("only the public certificate gone", func(t *testing.T) {
		a, dir := openTest(t)
		remove(t, dir, certFile)
		if _, err := Open(dir, "gw.test"); err != nil {
			t.Fatal(err)
		}
		if got := read(t, dir, certFile); !bytes.Equal(got, a.PEM()) {
			t.Error("it was not written anew")
		}
	})
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		fmt.Fprintf(&b, "%s %v\n%s\n", filepath.Base(f), err, data)
	}
	return b.String()
}

// TestPrintedKeys: no way of printing an authority or a leaf shows a key.
func TestPrintedKeys(t *testing.T) {
	a, dir := openTest(t)
	leaf, err := a.Mint(serverLike(t, a, nil), true, true)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(read(t, dir, keyFile))
	key := block.Bytes[36:68] // the scalar, in PKCS #8 of a P-256 key
	var out bytes.Buffer
	for _, v := range []any{a, a.trusted, a.trusted.key, &a.trusted.key, leaf.PrivateKey} {
		fmt.Fprintf(&out, "%v %+v %#v %s %x %d %q\n", v, v, v, v, v, v, v)
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
		if j, err := json.Marshal(v); err == nil {
			out.Write(j)
		}
	}
	fmt.Fprintf(&out, "%v %+v %#v", leaf, leaf, *leaf)
	for _, form := range []string{string(key), fmt.Sprintf("%x", key), fmt.Sprint(key), fmt.Sprintf("%#v", key)} {
		if strings.Contains(out.String(), strings.Trim(form, "[]{}byte")) {
			t.Error("a key was printed")
		}
	}
	if !strings.Contains(out.String(), private) {
		t.Error("nothing was redacted")
	}
	if s, err := x509.ParseCertificate(leaf.Certificate[0]); err != nil || time.Until(s.NotAfter) <= 0 {
		t.Error("leaf unusable", err)
	}
}
