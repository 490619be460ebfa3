package inspect

import (
	"io"
	"testing"
)

func TestEditsApply(t *testing.T) {
	body := Bytes("0123456789")
	for _, c := range []struct {
		name string
		list []Edit
		want string
		bad  bool
	}{
		{"none", nil, "0123456789", false},
		{"insert at the ends", []Edit{{0, 0, Bytes("<")}, {10, 10, Bytes(">")}}, "<0123456789>", false},
		{"replace and delete", []Edit{{1, 3, Bytes("AB")}, {3, 5, nil}}, "0AB56789", false},
		{"everything", []Edit{{0, 10, Bytes("x")}}, "x", false},
		{"overlap", []Edit{{1, 3, nil}, {2, 4, nil}}, "", true},
		{"out of order", []Edit{{4, 5, nil}, {1, 2, nil}}, "", true},
		{"outside", []Edit{{4, 11, nil}}, "", true},
		{"reversed", []Edit{{4, 3, nil}}, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, size, err := (&Edits{c.list}).Apply(body)
			if (err != nil) != c.bad {
				t.Fatalf("err = %v, want bad = %v", err, c.bad)
			}
			if c.bad {
				return
			}
			got, err := io.ReadAll(r)
			if err != nil || string(got) != c.want || size != int64(len(c.want)) {
				t.Errorf("got %q, size %d, err %v; want %q", got, size, err, c.want)
			}
		})
	}
}

func TestZeroVerdictDefers(t *testing.T) {
	var v Verdict
	if v.Action.String() != "Defer" {
		t.Fatalf("zero verdict is %v", v.Action)
	}
}
