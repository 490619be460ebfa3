package dot

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// viewText reads a view in every way that matters.
func viewText(t *testing.T, v *View) string {
	t.Helper()
	whole, err := io.ReadAll(io.NewSectionReader(v, 0, v.Size()))
	if err != nil || int64(len(whole)) != v.Size() {
		t.Fatalf("%q, size %d, %v", whole, v.Size(), err)
	}
	if len(whole) > 300 {
		return string(whole)
	}
	for from := range whole {
		for _, n := range []int{1, 2, 3, len(whole) - from} {
			p := make([]byte, n)
			k, err := v.ReadAt(p, int64(from))
			want := whole[from:min(len(whole), from+n)]
			if !bytes.Equal(p[:k], want) || err != nil && (err != io.EOF || k == n) {
				t.Fatalf("ReadAt(%d, %d) = %q, %v; want %q", n, from, p[:k], err, want)
			}
		}
	}
	if _, err := v.ReadAt(make([]byte, 1), v.Size()); err != io.EOF {
		t.Errorf("behind the end: %v", err)
	}
	if _, err := v.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("before the begin: no error")
	}
	if err := iotest.TestReader(io.NewSectionReader(v, 0, v.Size()), whole); err != nil {
		t.Error(err)
	}
	return string(whole)
}

func TestViews(t *testing.T) {
	for _, c := range []struct{ name, in, content, kept, loose, nul string }{
		{"plain", "a\r\n..b\r\n", "a\r\n.b\r\n", "", "", ""},
		{"S-136 dot kept", "a\r\n.x\r\n.y\r\n..z\r\n", "a\r\nx\r\ny\r\n.z\r\n", "a\r\n.x\r\n.y\r\n.z\r\n", "", ""},
		{"S-136 first line", ".x\r\n", "x\r\n", ".x\r\n", "", ""},
		{"S-137 dots after a bare LF or CR", "a\n..\r\nb\r.x\n.\x00y\r\n", "a\n..\r\nb\r.x\n.\x00y\r\n", "", "a\n.\r\nb\rx\n\x00y\r\n", "a\n..\r\nb\r.x\n.y\r\n"},
		{"S-139 NULs", "\x00M\x00Z\x00\x00\r\n\x00", "\x00M\x00Z\x00\x00\r\n\x00\r\n", "", "", "MZ\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := strings.TrimSuffix(c.in, "\r\n") + "\r\n.\r\n"
			content, info, _, err := parse(in, 64, false)
			if err != nil || content != c.content {
				t.Fatalf("content %q, %v", content, err)
			}
			body := strings.NewReader(content)
			for _, v := range []struct {
				name string
				v    *View
				want string
			}{{"dots kept", info.DotsKept(body), c.kept}, {"loose dots removed", info.LooseDotsRemoved(body), c.loose}} {
				if v.want == "" != (v.v == nil) {
					t.Errorf("%s: view %v", v.name, v.v)
				} else if v.v != nil && viewText(t, v.v) != v.want {
					t.Errorf("%s: %q, want %q", v.name, viewText(t, v.v), v.want)
				}
			}
			nul, err := info.NULsRemoved(body)
			if err != nil || c.nul == "" != (nul == nil) {
				t.Fatalf("without NUL: %v, %v", nul, err)
			}
			if nul != nil && viewText(t, nul) != c.nul {
				t.Errorf("without NUL: %q, want %q", viewText(t, nul), c.nul)
			}
		})
	}
}

// TestLargeViews reads views across many blocks.
func TestLargeViews(t *testing.T) {
	var wire strings.Builder
	for wire.Len() < 5*viewBlock {
		wire.WriteString(".x\x00\x00y\nz\n.w\r\n")
	}
	wire.WriteString(strings.Repeat("\x00", 2*viewBlock) + "end\r\n.\r\n")
	content, info, _, err := parse(wire.String(), 4096, false)
	if err != nil {
		t.Fatal(err)
	}
	v, err := info.NULsRemoved(strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.ReplaceAll(content, "\x00", "")
	if viewText(t, v) != want {
		t.Error("NULs are not removed as they should")
	}
	for from := 0; from < len(want); from += 9973 {
		p := make([]byte, 3*viewBlock)
		if n, err := v.ReadAt(p, int64(from)); string(p[:n]) != want[from:min(from+len(p), len(want))] {
			t.Fatalf("ReadAt(%d): %d octets differ, %v", from, n, err)
		}
	}
	if info.DotsKept(strings.NewReader(content)) != nil || info.LooseDotsRemoved(strings.NewReader(content)) != nil {
		t.Error("a view though not all offsets are known")
	}
	if _, err := info.NULsRemoved(strings.NewReader("short\x00")); err != io.ErrUnexpectedEOF {
		t.Errorf("a body that is too short: %v", err)
	}
}
