package maild

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"mailweir/inspect"
	"mailweir/inspect/inspecttest"
	"mailweir/inspect/mimetree"
	"mailweir/inspect/quarantine"
	"mailweir/inspect/repack"
	"mailweir/inspect/spool"
)

// whole puts a scanner together as the gateway does.
func whole(t *testing.T, password string, set func(*Settings)) (*MailD, *quarantine.Store) {
	t.Helper()
	store, err := quarantine.Open(context.Background(), quarantine.Config{Dir: filepath.Join(t.TempDir(), "q")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	pool := testSpool(t)
	var s repack.Settings
	if err := s.RepackPassword.UnmarshalText([]byte(password)); err != nil {
		t.Fatal(err)
	}
	return newMailD(t, Config{Settings: settings(set), Keeper: store, Spool: pool,
		Repacker: repack.New(repack.Config{Settings: s, Spool: pool, Host: "gw.example"})}), store
}

func applied(t testing.TB, m *inspect.Message, v inspect.Verdict) string {
	t.Helper()
	r, size, err := v.Edits.Apply(m.Body)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil || int64(len(b)) != size {
		t.Fatalf("%d octets of %d, %v", len(b), size, err)
	}
	return string(b)
}

func TestRepack(t *testing.T) {
	payload := b64(zipOf(t, "eicar.com", eicar))
	for _, c := range []struct{ name, message, keeps string }{
		{"an attachment", attach("t.zip", "application/zip", "base64", payload), "Hello."},
		{"in an attached message", attach("m.eml", "message/rfc822", "7bit", attach("t.zip", "application/zip", "base64", payload)), "Hello."},
		{"in an encoded message", attach("m.eml", "message/rfc822", "base64", b64(attach("t.zip", "application/zip", "base64", payload))), ""},
		{"the only part", "Subject: keep me\r\n\r\n" + eicar + "\r\n", "Subject: keep me"},
		{"between parts", strings.Replace(attach("a", "text/plain", "7bit", "x"), "--b1", uu("e.com", eicar)+"--b1", 1), ""},
		{"read in two ways", strings.Replace(attach("e.com", "application/octet-stream", "base64", b64(eicar)), "Content-Type: multipart/mixed", "Content-Type: text/plain\r\nContent-Type: multipart/mixed", 1), ""},
	} {
		for _, password := range []string{"None", "Plain(secret)", "HMAC(secret)"} {
			for _, block := range []bool{false, true} {
				t.Run(c.name+", "+password, func(t *testing.T) {
					d, store := whole(t, password, func(s *Settings) { s.BlockUnchecked = block })
					m := message(c.message)
					v := d.Scan(context.Background(), m)
					defer v.Done()
					if block && v.Action == inspect.Reject && strings.HasPrefix(v.Reason, "unchecked:ambiguous") {
						return // refused for being ambiguous
					}
					if v.Action != inspect.Modify || v.Err != nil || v.Edits == nil {
						t.Fatalf("verdict %+v", v)
					}
					out := applied(t, m, v)
					if strings.Contains(out, eicar) || strings.Contains(out, payload) {
						t.Error("it is still there")
					}
					if !strings.Contains(out, c.keeps) {
						t.Errorf("%q is gone from\n%s", c.keeps, out)
					}
					// The original is kept, octet for octet.
					var b bytes.Buffer
					if err := store.Export(context.Background(), v.Quarantine, &b); err != nil || b.String() != c.message {
						t.Errorf("quarantine has %q, %v", b.String(), err)
					}
				})
			}
		}
	}
}

// TestHeaderIsNotRepacked: a repack keeps the header, so what is harmful in there can only be refused.
func TestHeaderIsNotRepacked(t *testing.T) {
	d, _ := whole(t, "None", nil)
	v := d.Scan(context.Background(), message("Subject: x\r\nX-Y: "+eicar+"\r\n\r\nhello\r\n"))
	if v.Action != inspect.Reject || v.Quarantine == "" {
		t.Errorf("verdict %+v", v)
	}
}

// repackerFunc makes a function a Repacker.
type repackerFunc func(m *inspect.Message, bad []BadPart) (*inspect.Edits, func(), error)

func (f repackerFunc) Repack(_ context.Context, m *inspect.Message, _ *mimetree.Part, bad []BadPart, _ string) (*inspect.Edits, func(), error) {
	return f(m, bad)
}

func replaceAll(m *inspect.Message, with string) *inspect.Edits {
	return &inspect.Edits{List: []inspect.Edit{{Start: 0, End: m.Body.Size(), New: inspect.Bytes(with)}}}
}

// TestRepackIsLookedAtAgain: what a repacker makes is not taken on trust.
func TestRepackIsLookedAtAgain(t *testing.T) {
	bad := attach("e.com", "application/octet-stream", "base64", b64(eicar))
	released := 0
	release := func() { released++ }
	for _, c := range []struct {
		name   string
		r      repackerFunc
		action inspect.Action
		out    string
	}{
		{"it takes out nothing", func(*inspect.Message, []BadPart) (*inspect.Edits, func(), error) {
			return &inspect.Edits{}, release, nil
		}, inspect.Reject, ""},
		{"it takes out the part, but not all of it", func(m *inspect.Message, bad []BadPart) (*inspect.Edits, func(), error) {
			if bad[0].Part.Path == "" { // the whole message is asked for next
				return replaceAll(m, "Subject: clean\r\n\r\n"), release, nil
			}
			return replaceAll(m, "Subject: x\r\n\r\n"+eicar), release, nil
		}, inspect.Modify, "Subject: clean\r\n\r\n"},
		{"edits that do not fit", func(m *inspect.Message, bad []BadPart) (*inspect.Edits, func(), error) {
			return &inspect.Edits{List: []inspect.Edit{{Start: 5, End: 1 << 40}}}, release, nil
		}, inspect.Reject, ""},
		{"an error", func(*inspect.Message, []BadPart) (*inspect.Edits, func(), error) {
			return nil, nil, errors.New("x")
		}, inspect.Reject, ""},
		{"a full spool", func(*inspect.Message, []BadPart) (*inspect.Edits, func(), error) {
			return nil, nil, spool.ErrQuota
		}, inspect.Defer, ""},
		{"a panic", func(*inspect.Message, []BadPart) (*inspect.Edits, func(), error) { panic("as told") }, inspect.Reject, ""},
		{"an archive of its own", func(m *inspect.Message, _ []BadPart) (*inspect.Edits, func(), error) {
			return replaceAll(m, attach("quarantine.zip", "application/zip", "base64", b64(zipOf(t, "e", eicar)))), nil, nil
		}, inspect.Modify, attach("quarantine.zip", "application/zip", "base64", b64(zipOf(t, "e", eicar)))},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &keeper{}
			m := message(bad)
			v := newMailD(t, Config{Repacker: c.r, Keeper: k}).Scan(context.Background(), m)
			if v.Action != c.action || v.Quarantine != "q1" || len(k.kept) != 1 {
				t.Fatalf("verdict %+v", v)
			}
			if c.action == inspect.Modify {
				if got := applied(t, m, v); got != c.out {
					t.Errorf("message is %q", got)
				}
			} else if v.Edits != nil || v.Err == nil || v.Reply.Code == 0 {
				t.Errorf("verdict %+v", v)
			}
			v.Done()
		})
	}
	t.Run("an archive that came along is no archive of ours", func(t *testing.T) {
		// The repacker leaves the sender's quarantine.zip alone; it is found, and the message refused.
		d := newMailD(t, Config{Keeper: &keeper{}, Repacker: repackerFunc(func(m *inspect.Message, _ []BadPart) (*inspect.Edits, func(), error) {
			return &inspect.Edits{List: []inspect.Edit{{Start: 0, End: 0, New: inspect.Bytes("X-Repacked: yes\r\n")}}}, nil, nil
		})})
		v := d.Scan(context.Background(), message(attach("quarantine.zip", "application/zip", "base64", b64(zipOf(t, "e", eicar)))))
		if v.Action != inspect.Reject {
			t.Errorf("verdict %+v", v)
		}
	})
	t.Run("an engine that fails meanwhile", func(t *testing.T) {
		n := 0
		e := &inspecttest.Engine{Do: func(_ context.Context, o *inspect.Object) ([]inspect.Finding, error) {
			if o.Path == "" {
				n++
			}
			if n > 1 {
				return nil, errors.New("gone")
			}
			return []inspect.Finding{{Kind: inspect.Threat, Name: "X", Category: inspect.KnownVirus}}, nil
		}}
		d := newMailD(t, Config{Engines: []inspect.Engine{e}, Keeper: &keeper{}, Repacker: repackerFunc(func(m *inspect.Message, _ []BadPart) (*inspect.Edits, func(), error) {
			return replaceAll(m, "Subject: clean\r\n\r\nhello\r\n"), nil, nil
		})})
		if v := d.Scan(context.Background(), message("Subject: x\r\n\r\nhello\r\n")); v.Action != inspect.Defer || v.Err == nil {
			t.Errorf("verdict %+v", v)
		}
	})
}
