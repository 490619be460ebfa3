package maild

import (
	"context"
	"encoding/asn1"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mailweir/inspect"
)

// cms is a ContentInfo with that object identifier.
func cms(t *testing.T, oid ...int) string {
	t.Helper()
	b, err := asn1.Marshal(struct {
		ID      asn1.ObjectIdentifier
		Content []byte `asn1:"tag:0,explicit"`
	}{oid, []byte(strings.Repeat("x", 300))})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEncryptedIsUnchecked(t *testing.T) {
	enveloped := cms(t, 1, 2, 840, 113549, 1, 7, 3)
	const armor = "-----BEGIN PGP MESSAGE-----\n\nwcBMA\n-----END PGP MESSAGE-----\n"
	for _, c := range []struct{ name, in, category string }{
		{"enveloped", attach("smime.p7m", "application/pkcs7-mime", "base64", b64(enveloped)), inspect.Encrypted},
		{"under another name", attach("photo.jpg", "image/jpeg", "base64", b64(enveloped)), inspect.Encrypted},
		{"authEnveloped", attach("a", "application/x-pkcs7-mime", "base64", b64(cms(t, 1, 2, 840, 113549, 1, 9, 16, 1, 23))), inspect.Encrypted},
		{"compressed", attach("a", "application/pkcs7-mime", "base64", b64(cms(t, 1, 2, 840, 113549, 1, 9, 16, 1, 9))), inspect.Broken},
		{"signed, but broken", attach("a", "application/pkcs7-mime", "base64", b64(cms(t, 1, 2, 840, 113549, 1, 7, 2))), inspect.Broken},
		{"armor", attach("a.txt", "text/plain", "7bit", "Hello\r\n"+crlf(armor)), inspect.Encrypted},
		{"armor at once", attach("a.asc", "application/octet-stream", "7bit", armor), inspect.Encrypted},
		{"packets", attach("a.gpg", "application/octet-stream", "base64", b64("\xc1\xc0\x4c\x03xxx")), inspect.Encrypted},
		{"multipart/encrypted", crlf("Content-Type: multipart/encrypted; boundary=b; protocol=\"x/y\"\n\n--b\nContent-Type: x/y\n\nz\n--b--\n"), inspect.Encrypted},
		{"quoted armor", attach("a.txt", "text/plain", "7bit", "> "+armor[:27]+"\n"), ""},
		{"signature", attach("a.asc", "application/pgp-signature", "7bit", "-----BEGIN PGP SIGNATURE-----\n"), ""},
		{"octets like packets", attach("a.bin", "application/octet-stream", "base64", b64("\xc1\xc0\x4c\x03xxx")), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newMailD(t, Config{}).Judge(context.Background(), message(c.in))
			got := ""
			for _, f := range v.Findings {
				if f.Kind == inspect.Unchecked {
					got = f.Category
				}
			}
			if got != c.category {
				t.Errorf("got %q, want %q: %+v", got, c.category, v.Findings)
			}
		})
	}
}

func TestOpaqueSignedIsLookedInto(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	openssl := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", in("k"), "-out", in("c"), "-subj", "/CN=x")
	if err := os.WriteFile(in("m"), []byte(attach("a.com", "application/octet-stream", "base64", b64(eicar))), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{"definite": nil, "indefinite, in pieces": {"-stream"}} {
		t.Run(name, func(t *testing.T) {
			openssl(append([]string{"cms", "-sign", "-nodetach", "-binary", "-in", in("m"), "-signer", in("c"), "-inkey", in("k"), "-outform", "DER", "-out", in("s")}, args...)...)
			b, err := os.ReadFile(in("s"))
			if err != nil {
				t.Fatal(err)
			}
			v := newMailD(t, Config{Engines: []inspect.Engine{builtinEngine(t)}}).Judge(context.Background(),
				message(attach("smime.p7m", "application/pkcs7-mime", "base64", b64(string(b)))))
			found := false
			for _, f := range v.Findings {
				found = found || f.Kind == inspect.Threat && strings.Contains(f.Path, "smime.p7m/signed/") && strings.HasSuffix(f.Path, "a.com")
				if f.Kind == inspect.Unchecked {
					t.Errorf("unchecked: %+v", f)
				}
			}
			if !found {
				t.Errorf("not found: %+v", v.Findings)
			}
		})
	}
}

// What is signed and not encrypted stays clean.
func TestSignedMailIsClean(t *testing.T) {
	files, err := filepath.Glob("../../scripts/lab/corpus/mail/smime-*.eml")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		v := newMailD(t, Config{Engines: []inspect.Engine{builtinEngine(t)}}).Judge(context.Background(), message(string(b)))
		for _, f := range v.Findings {
			if f.Kind != inspect.Odd {
				t.Errorf("%s: %+v", file, f)
			}
		}
	}
}
