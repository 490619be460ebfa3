package proxytest

import (
	"bufio"
	"bytes"
	"io"
	"regexp"
	"strings"
	"testing"

	"mailweir/proxy/dot"
)

// oracle finds the first line "." by a regular expression for line ends, and returns the index of its dot.
func oracle(m EODModel, lineEnd *regexp.Regexp, b []byte) int {
	index := make([]int, 0, len(b)) // of each octet that the model sees
	var seen []byte
	for i, c := range b {
		if c != 0 || !m.dropNUL {
			index, seen = append(index, i), append(seen, c)
		}
	}
	ends := lineEnd.FindAllIndex(seen, -1)
	at := 0
	for _, e := range ends {
		if string(seen[at:e[0]]) == "." {
			return index[at]
		}
		at = e[1]
	}
	return -1
}

// letters are all that matters for the end of data, and one that does not.
const letters = "\r\n.\x00a"

// allStrings calls f with every string over letters of up to n octets.
func allStrings(n int, f func(string)) {
	b := make([]byte, 0, n)
	var rec func()
	rec = func() {
		f(string(b))
		if len(b) < n {
			for i := range letters {
				b = append(b, letters[i])
				rec()
				b = b[:len(b)-1]
			}
		}
	}
	rec()
}

func TestModelsAgainstRegexps(t *testing.T) {
	for _, m := range EODModels() {
		lineEnd := regexp.MustCompile([]string{"\r\n", "\r?\n", "\r*\n", "\r\n|\r|\n", "\r*\n|\r"}[m.ends])
		allStrings(5, func(s string) {
			b := []byte(s + "\r\n.\r\n")
			want, got := oracle(m, lineEnd, b), m.End(b)
			if got >= 0 { // back to the dot
				got = bytes.LastIndexByte(b[:got], '.')
			}
			if want != got {
				t.Fatalf("model %s, %q: dot at %d, want %d", m.Name, b, got, want)
			}
		})
	}
}

// TestNoModelSplits is the brute force of rule 3 at the wire: whatever the reader does not flag is one message for
// every model, and for the strict one the same content.
func TestNoModelSplits(t *testing.T) {
	models := EODModels()
	streams, flagged := 0, 0
	buffered := bufio.NewReaderSize(nil, 64)
	for _, head := range []string{"", "b"} {
		allStrings(7, func(s string) {
			wire := head + s + "\r\n.\r\nQUIT\r\n"
			buffered.Reset(strings.NewReader(wire))
			r := dot.NewReader(buffered)
			if err := r.Drain(); err != nil {
				t.Fatalf("%q: %v", wire, err)
			}
			streams++
			if r.Info().EODLike > 0 {
				flagged++
				return
			}
			end := int(r.Info().Wire) + 3
			block := []byte(wire[:end])
			for _, m := range models {
				// A model may take the end at the CR of the strict end, but not before.
				if at := m.End(block); at >= 0 && at < end-1 {
					t.Fatalf("model %s ends %q at %d of %d", m.Name, block, at, end)
				}
			}
			if at := models[0].End(block); at != end {
				t.Fatalf("the strict model ends %q at %d of %d", block, at, end)
			}
		})
	}
	if streams != 2*97656 || flagged == 0 || flagged > streams/2 {
		t.Errorf("%d streams, %d flagged", streams, flagged)
	}
	t.Logf("%d streams, %d not flagged", streams, streams-flagged)
}

// TestModelsAreLenient shows that the sequences of S-120 … S-132 do split messages at some model: the test above would
// otherwise prove nothing.
func TestModelsAreLenient(t *testing.T) {
	for _, seq := range []string{"\n.\n", "\n.\r\n", "\r.\r\n", "\r.\r", "\r.\n", "\n.\r", "\r\n.\n", "\r\n.\r", "\r\n.\r\r\n",
		"\r\r\n.\r\r\n", "\r\n\x00.\r\n", "\r\n.\x00\r\n", "\r\n\x00.\r", "\r\n\x00.\n", "\n\n.\r\n", "\n.\n.\n", "\r\n.\r.\r\n"} {
		block := []byte("a" + seq + "b\r\n.\r\n")
		split := 0
		for _, m := range EODModels() {
			if at := m.End(block); at >= 0 && at < len(block)-1 {
				split++
			}
		}
		if split == 0 {
			t.Errorf("%q: no model splits it", seq)
		}
	}
}

func BenchmarkModel(b *testing.B) {
	block := []byte(strings.Repeat("text text\r\n", 100) + ".\r\n")
	m := EODModels()[9]
	for b.Loop() {
		if m.End(block) < 0 {
			b.Fatal(io.ErrUnexpectedEOF)
		}
	}
}
