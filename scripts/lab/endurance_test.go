package lab

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"mailweir/scripts/lab/corpus"
)

// endurance is how long TestEndurance runs: a few seconds, or as many minutes as scripts/soak says.
func endurance(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("MAILWEIR_SOAK_MINUTES")
	if text == "" {
		return 4 * time.Second
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("MAILWEIR_SOAK_MINUTES = %q is no number of minutes", text)
	}
	return time.Duration(n) * time.Minute
}

// TestEndurance has clients of every temper send clean mail, threats and halves of messages at once, while settings are
// reloaded and the engine has its moods. Whoever was told yes finds his message at the server, once and whole; no
// threat is there; and nothing is left: no descriptor, no file, no memory.
func TestEndurance(t *testing.T) {
	length := endurance(t)
	r := newRig(t, map[string]string{"LinuxFirewall.ThreatAction": "Reject", "ClamD.ClamdTimeout": "1s", "LinuxFirewall.ScanTimeout": "2s"})
	all := messages(t)
	threats, err := corpus.Threats()
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, corpus.Message{Name: "big", Data: corpus.Big(700<<10, 1)})
	base, err := Files(r.g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	type told struct {
		content []byte
		yes     bool
	}
	var mu sync.Mutex
	believed := map[string]told{}
	stop := make(chan struct{})
	var running sync.WaitGroup
	for c := range 6 {
		running.Go(func() {
			random := rand.New(rand.NewPCG(uint64(c), 1))
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				m := all[random.IntN(len(all))]
				if random.IntN(8) == 0 {
					m = threats[random.IntN(len(threats))]
				}
				to := fmt.Sprintf("e%d-%d-%s@server.example", c, i, m.Name)
				leave := []Stage{"", "", "", AtConnect, AtRcpt, AtContent, AtDot}[random.IntN(7)]
				a := r.deliver(m.Data, to, random.IntN(2) == 0, func(s Stage) error {
					if s == leave {
						return errHere
					}
					return nil
				})
				mu.Lock()
				believed[to] = told{m.Data, a.err == nil && a.reply.Good()}
				mu.Unlock()
				if a.err == nil && a.reply.Good() && bytes.HasPrefix([]byte(m.Name), []byte("virus-")) {
					t.Errorf("%s was accepted: %s", m.Name, a.reply)
				}
			}
		})
	}
	end := time.Now().Add(length)
	for n := 0; time.Now().Before(end); n++ {
		time.Sleep(400 * time.Millisecond)
		r.engine.Feel([]Mood{Fine, Slow, Fine, Garbage, Fine}[n%5])
		if out, err := r.g.Command(r.ctx, []string{"reload", "stat"}[n%2]); err != nil && r.ctx.Err() == nil {
			t.Error(err, out)
		}
	}
	close(stop)
	running.Wait()
	r.quiet(t)
	yes, count := 0, map[string]int{}
	for _, s := range r.sink.Stored() {
		count[s.To[0]]++
		if b := believed[s.To[0]]; !bytes.Equal(s.Data, b.content) {
			t.Errorf("%s was changed or cut: %d octets of %d", s.To[0], len(s.Data), len(b.content))
		}
	}
	for to, b := range believed {
		if b.yes {
			yes++
		}
		if n := count[to]; b.yes && n != 1 || !b.yes && n != 0 {
			t.Errorf("%s: told yes: %v, stored %d", to, b.yes, n)
		}
	}
	t.Logf("%d messages in %v, %d of them told yes", len(believed), length, yes)
	if yes < 20 {
		t.Error("hardly anything passed: nothing was tried")
	}
	eventually(t, "descriptors are given back", func() bool { n, err := Files(r.g.Pid()); return err == nil && n <= base+8 })
	eventually(t, "nothing is left in the spool", func() bool { return spoolEmpty(t, r.g) })
	if rss, err := Resident(r.g.Pid()); err != nil || rss > 256<<20 {
		t.Errorf("the gateway has %d MiB, %v", rss>>20, err)
	}
}
