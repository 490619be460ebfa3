package corpus

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

func TestMessages(t *testing.T) {
	all, err := Messages()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 100 {
		t.Fatalf("only %d messages", len(all))
	}
	octets := 0
	for _, m := range all {
		octets += len(m.Data)
		if sha256.Sum256(m.Data) != m.Sum {
			t.Errorf("%s is not what its sum says", m.Name)
		}
		if !bytes.HasSuffix(m.Data, []byte("\r\n")) {
			t.Errorf("%s does not end in CRLF", m.Name)
		}
		bare := bytes.ReplaceAll(m.Data, []byte("\r\n"), nil)
		if bytes.ContainsAny(bare, "\r\n") {
			t.Errorf("%s has a bare CR or LF", m.Name)
		}
	}
	if octets > 2<<20 {
		t.Errorf("the corpus has grown to %d octets", octets)
	}
}

func TestBig(t *testing.T) {
	for _, size := range []int{1 << 10, 30 << 10, 1 << 20} {
		m := Big(size, 7)
		if len(m) > size+80 || len(m) < size-200 {
			t.Errorf("asked for %d octets, got %d", size, len(m))
		}
		if !bytes.Equal(m, Big(size, 7)) || bytes.Equal(m, Big(size, 8)) {
			t.Error("the same seed must give the same octets, another seed others")
		}
	}
}

func TestThreats(t *testing.T) {
	all, err := Threats()
	if err != nil || len(all) != 5 {
		t.Fatal(len(all), err)
	}
	if len(Eicar()) != 68 {
		t.Errorf("the test file has %d octets", len(Eicar()))
	}
	if n := bytes.Count(all[0].Data, Eicar()); n != 1 {
		t.Errorf("the raw message holds the test file %d times", n)
	}
}
