package unpack

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestClosed: archives that cannot be opened yet are known for what they are, never passed over.
func TestClosed(t *testing.T) {
	for name, head := range map[string]string{
		"rar": "Rar!\x1a\x07\x01\x00rest", "7z": "7z\xbc\xaf\x27\x1c\x00\x04", "xz": "\xfd7zXZ\x00\x00\x04", "zstd": "\x28\xb5\x2f\xfd\x04",
		"lz4": "\x04\x22\x4d\x18\x64", "lzip": "LZIP\x01\x0c", "cab": "MSCF\x00\x00\x00\x00\x10", "compress": "\x1f\x9d\x90ab",
		"arj": "\x60\xea\x29\x00\x1e\x0b\x01\x00\x10\x00\x02\xff", "ace": "\x01\x02\x03\x04\x05\x06\x07**ACE**", "lzh": "\x18\x63-lh5-\x01",
		"cpio": "0707010000", "ar": "!<arch>\ndebian", "rpm": "\xed\xab\xee\xdb\x03\x00",
	} {
		format, ok := Detect([]byte(head), "")
		if !ok || format != name {
			t.Errorf("%s is taken for %q", name, format)
			continue
		}
		err := Walk(format, bytes.NewReader([]byte(head)), int64(len(head)), NewBudget(DefaultLimits(), nil, nil), func(Member) error { return nil })
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, head := range []string{"", "\x1f\x9d", "\x1f\x9d\xff", "\x60\xea\xff\xff\x1e\x00\x00\x00\x00\x00\x00", "Hi-lh and so on", "`\xea is text"} {
		if format, ok := Detect([]byte(head), ""); ok {
			t.Errorf("%q is taken for %s", head, format)
		}
	}
}

// TestClosedReal: what real programs write.
func TestClosedReal(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("hello hello hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "a.7z")
	if msg, err := exec.Command("7z", "a", out, file).CombinedOutput(); err != nil {
		t.Fatalf("7z, of Debian's p7zip-full: %v\n%s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if format, ok := Detect(b[:min(len(b), HeadSize)], ""); !ok || format != "7z" {
		t.Errorf("taken for %q", format)
	}
}
