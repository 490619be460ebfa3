package maild

import (
	"context"
	"strings"
	"testing"

	"mailweir/inspect"
	"mailweir/inspect/repack"
)

// FuzzScan: whatever is sent, there is a verdict, no fault of the program is behind it, and what is repacked is clean.
func FuzzScan(f *testing.F) {
	for _, seed := range []string{
		"Subject: x\r\n\r\n" + eicar + "\r\n",
		attach("t.zip", "application/zip", "base64", b64(zipOf(f, "e.com", eicar))),
		attach("m.eml", "message/rfc822", "7bit", attach("t.gz", "application/gzip", "base64", b64(gz(eicar)))),
		attach("m.eml", "message/rfc822", "base64", b64(attach("t.tgz", "application/gzip", "base64", b64(tgz("e", eicar))))),
		"Subject: x\r\n\r\n" + uu("e.com", eicar),
	} {
		f.Add([]byte(seed))
	}
	pool := testSpool(f)
	d := newMailD(f, Config{Spool: pool, Keeper: &keeper{}, Repacker: repack.New(repack.Config{Spool: pool, Host: "gw"})})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := message(string(data))
		v := d.Scan(context.Background(), m)
		if v.Err != nil && strings.Contains(v.Err.Error(), "panic") {
			t.Fatal(v.Err)
		}
		if v.Action == inspect.Modify {
			if out := applied(t, m, v); strings.Contains(out, eicar) {
				t.Error("repacked, and still there")
			}
		}
		v.Done()
	})
}
