package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"mailweir/scripts/lab/corpus"
)

// way is how mail gets from a client to a server in a test: directly or through the gateway in one of its diverts.
type way struct {
	lab     *Lab
	from    *Namespace // where clients run
	ips     []string   // how they call the server
	ca      string     // whom they trust
	postfix *Postfix
}

// messages returns the corpus.
func messages(t *testing.T) []corpus.Message {
	t.Helper()
	all, err := corpus.Messages()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// sendCorpus sends every message by every program, each over another mixture of address family and protection, and
// tells what did not arrive exactly once and unchanged.
func sendCorpus(ctx context.Context, t *testing.T, w way) {
	t.Helper()
	type job struct {
		sender Sender
		m      corpus.Message
		ip     string
		sec    Security
		to     string
	}
	var jobs []job
	for si, s := range Senders() {
		for i, m := range messages(t) {
			n := i + si
			jobs = append(jobs, job{s, m, w.ips[n%len(w.ips)], Security(n / len(w.ips) % 3), fmt.Sprintf("%s-%s@server.example", s.Name, m.Name)})
		}
	}
	w.postfix.Sink.Clear()
	queue := make(chan job)
	var running sync.WaitGroup
	var mu sync.Mutex
	failed := map[string]string{}
	for range 3 {
		running.Go(func() {
			for j := range queue {
				out, err := j.sender.Send(ctx, Errand{NS: w.from, IP: j.ip, Security: j.sec, CAFile: w.ca, From: "a@client.example", To: j.to, Content: j.m.Data, Dir: w.lab.Dir})
				if err != nil {
					mu.Lock()
					failed[j.to] = fmt.Sprintf("%s %s: %v\n%s", family(j.ip), j.sec, err, out)
					mu.Unlock()
				}
			}
		})
	}
	for _, j := range jobs {
		queue <- j
	}
	close(queue)
	running.Wait()
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := w.postfix.Sink.Wait(wait, len(jobs)-len(failed)); err != nil {
		t.Error(err)
	}
	for _, j := range jobs {
		if why := failed[j.to]; why != "" {
			t.Errorf("%s: %s", j.to, why)
			continue
		}
		if err := arrived(w.postfix.Sink.Stored(), j.to, j.m); err != nil {
			t.Errorf("%s (%s %s): %v", j.to, family(j.ip), j.sec, err)
		}
	}
}

// arrived looks for one message by its recipient: it must be there once, unchanged behind what Postfix prepends, and
// its signature must verify.
func arrived(stored []Stored, to string, m corpus.Message) error {
	var got []byte
	n := 0
	for _, s := range stored {
		if slices.Contains(s.To, to) {
			got = s.Data
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("arrived %d times", n)
	}
	if err := Body(got, m.Data); err != nil {
		return err
	}
	content := got[len(got)-len(m.Data):]
	if sha256.Sum256(content) != m.Sum {
		return errors.New("the sum is another")
	}
	switch {
	case strings.HasPrefix(m.Name, "dkim-"):
		return verifyDKIM(got)
	case strings.HasPrefix(m.Name, "smime-"):
		return verifySMIME(got)
	case strings.HasPrefix(m.Name, "pgpmime-"):
		return verifyPGP(got)
	}
	return nil
}

// verifyPGP verifies a PGP/MIME signature with gpgv: the octets of the first part against the second.
func verifyPGP(content []byte) error {
	key, err := corpus.File("pgp.gpg")
	if err != nil {
		return err
	}
	parts := bytes.Split(content, []byte("\r\n--pgp"))
	if len(parts) != 4 {
		return fmt.Errorf("%d pieces", len(parts))
	}
	dir, err := os.MkdirTemp("", "pgp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	_, signature, _ := bytes.Cut(parts[2], []byte("\r\n\r\n"))
	for name, data := range map[string][]byte{"key": key, "text": parts[1][2:], "signature": signature} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	cmd := exec.Command("gpgv", "--keyring", filepath.Join(dir, "key"), filepath.Join(dir, "signature"), filepath.Join(dir, "text"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("verify: %w: %s", err, out)
	}
	return nil
}

// verifyDKIM verifies the signature of a message as the server got it.
func verifyDKIM(content []byte) error {
	records, err := corpus.File("dkim.txt")
	if err != nil {
		return err
	}
	result, err := dkim.VerifyWithOptions(bytes.NewReader(content), &dkim.VerifyOptions{LookupTXT: func(domain string) ([]string, error) {
		for _, line := range strings.Split(string(records), "\n") {
			if name, record, _ := strings.Cut(line, " "); name == domain {
				return []string{record}, nil
			}
		}
		return nil, fmt.Errorf("no record of %s", domain)
	}})
	if err != nil {
		return err
	}
	if len(result) != 1 {
		return fmt.Errorf("%d signatures", len(result))
	}
	return result[0].Err
}

func verifySMIME(content []byte) error {
	cert, err := corpus.File("smime.pem")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp("", "smime")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(cert); err != nil {
		return err
	}
	cmd := exec.Command("openssl", "smime", "-verify", "-CAfile", f.Name(), "-out", "/dev/null")
	cmd.Stdin = bytes.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("verify: %w: %s", err, out)
	}
	return nil
}

// TestSignaturesNotice shows that the verifiers of this test see a change of one octet.
func TestSignaturesNotice(t *testing.T) {
	for _, m := range messages(t) {
		var verify func([]byte) error
		switch {
		case strings.HasPrefix(m.Name, "dkim-rsa-simple-text-plain"):
			verify = verifyDKIM
		case strings.HasPrefix(m.Name, "smime-detached-text"):
			verify = verifySMIME
		case m.Name == "pgpmime-text":
			verify = verifyPGP
		default:
			continue
		}
		if err := verify(m.Data); err != nil {
			t.Errorf("%s: %v", m.Name, err)
		}
		for _, change := range []struct{ old, new string }{{"Just a line.", "Just a lime."}, {"Signed text", "Singed text"}} {
			if bad := bytes.Replace(m.Data, []byte(change.old), []byte(change.new), 1); !bytes.Equal(bad, m.Data) && verify(bad) == nil {
				t.Errorf("%s: a changed message verifies", m.Name)
			}
		}
	}
}

// TestDirectCorpus shows which of the programs carry the corpus unchanged by themselves.
func TestDirectCorpus(t *testing.T) {
	l, ctx := newLab(t)
	pki := newPKI(t, l)
	p, err := l.StartPostfix(ctx, PostfixConfig{Name: "server", NS: l.Server, PKI: pki})
	if err != nil {
		t.Fatal(err)
	}
	sendCorpus(ctx, t, way{lab: l, from: l.Client, ips: []string{ServerIP4, ServerIP6}, ca: pki.CAFile, postfix: p})
}
