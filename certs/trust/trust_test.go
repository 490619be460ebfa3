package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testPEM makes a self-signed certificate.
func testPEM(t *testing.T, ca bool) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "mailweir CA trust.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: ca}
	if ca {
		tmpl.KeyUsage = x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRefused(t *testing.T) {
	for name, path := range map[string]string{"no file": "/nonexistent", "no authority": testPEM(t, false), "no certificate": "/dev/null"} {
		if err := Install(path); err == nil {
			t.Errorf("%s: installed", name)
		}
		if err := Uninstall(path); err == nil {
			t.Errorf("%s: uninstalled", name)
		}
	}
}

// TestStores installs and uninstalls in a mount namespace of its own, in which the machine's store is covered by a copy.
func TestStores(t *testing.T) {
	if os.Getenv("MAILWEIR_TRUST_INSIDE") != "" {
		inside(t)
		return
	}
	for _, tool := range []string{"unshare", "update-ca-certificates"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	before := store(t)
	// With a user namespace the test needs no root; nobody else sees the mounts.
	script := `set -e
mount -t tmpfs none "$COPY"
cp -a /etc/ssl/certs "$COPY/certs"
mkdir "$COPY/local"
mount --bind "$COPY/certs" /etc/ssl/certs
mount --bind "$COPY/local" /usr/local/share/ca-certificates
exec "$0" -test.run '^TestStores$' -test.v`
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-m", "--propagation", "private", "sh", "-c", script, exe}
	if os.Geteuid() != 0 {
		args = append([]string{"-U", "-r"}, args...)
	}
	if err := exec.Command("unshare", append(args[:len(args)-4:len(args)-4], "true")...).Run(); err != nil {
		t.Skipf("no mount namespace here: %v", err)
	}
	cmd := exec.Command("unshare", args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "MAILWEIR_TRUST_INSIDE="+testPEM(t, true), "COPY="+t.TempDir(), "HOME="+home, "SUDO_USER=", "JAVA_HOME=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("PASS: TestStores")) {
		t.Errorf("nothing ran:\n%s", out)
	}
	if after := store(t); after != before {
		t.Error("the machine's own store was changed")
	}
}

// store tells whether the machine's bundle has changed.
func store(t *testing.T) string {
	t.Helper()
	list, err := filepath.Glob("/usr/local/share/ca-certificates/*")
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		return strings.Join(list, " ")
	}
	return strings.Join(list, " ") + st.ModTime().String()
}

// inside runs with the copies mounted.
func inside(t *testing.T) {
	path := os.Getenv("MAILWEIR_TRUST_INSIDE")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	system := func() bool {
		bundle, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(bundle, bytes.TrimSpace(data))
	}
	profile := filepath.Join(os.Getenv("HOME"), ".thunderbird", "abc.default")
	_, noNSS := exec.LookPath("certutil")
	if noNSS == nil {
		if err := os.MkdirAll(profile, 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("certutil", "-N", "-d", "sql:"+profile, "--empty-password").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	thunderbird := func() bool {
		out, err := exec.Command("certutil", "-L", "-d", "sql:"+profile).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return bytes.Contains(out, []byte("mailweir CA trust.test"))
	}
	for range 2 { // repeating changes nothing
		if err := Install(path); err != nil {
			t.Fatal(err)
		}
		if !system() || noNSS == nil && !thunderbird() {
			t.Fatalf("not installed: system %v", system())
		}
	}
	for range 2 {
		if err := Uninstall(path); err != nil {
			t.Fatal(err)
		}
		if system() || noNSS == nil && thunderbird() {
			t.Fatalf("still there: system %v", system())
		}
	}
}
