package divert

import (
	"fmt"
	"net/netip"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// direct opens n connections to the server, from the very ports that were diverted before, and tells how long the
// slowest took and how many took longer than a SYN's first repetition.
func (l *lab) direct(client, server string, first, n int, kind string) (slowest time.Duration, stalled int64) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var times []time.Duration
	var next, slow atomic.Int64
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				from := netip.AddrPortFrom(netip.MustParseAddr(client), uint16(first+i))
				start := time.Now()
				via, _, err := l.talk(l.client, at(server), from.String())
				d := time.Since(start)
				if err != nil || kind == "" && via != "" || kind != "" && via != "via "+kind {
					slow.Add(1)
					if i < 5 || os.Getenv("MAILWEIR_DIVERT_TEST_LOG") != "" {
						l.t.Logf("from %v: via %q, %v", from, via, err)
					}
				} else if d > 900*time.Millisecond {
					slow.Add(1)
				}
				mu.Lock()
				times = append(times, d)
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
	return times[len(times)-1], slow.Load()
}

// After a deliberate stop 1,000 direct connections from the very addresses and ports of diverted ones see no stall,
// in both families (docs/design/002-stop-without-stall.md).
func TestStopWithoutStall(t *testing.T) {
	for _, c := range [][2]string{{client4, server4}, {client6, server6}} {
		t.Run(c[1], func(t *testing.T) {
			l := newLab(t)
			l.serve(l.server, ":25")
			// The test's client and server let go of ports at once; the gateway's own memory is what is tested.
			g := l.start(l.gateway, forwarding)
			const n = 500
			if _, bad := l.direct(c[0], c[1], 20000, n, "forward"); bad > 0 {
				t.Fatalf("%d of %d diverted connections failed or stalled", bad, n)
			}
			if e := os.Getenv("MAILWEIR_DIVERT_TEST_NOSWEEP"); e != "" { // to see the stall that the cure cures
				g.kill()
				if e == "demux" {
					l.sysctl(l.gateway, "net.ipv4.tcp_early_demux", "0")
				}
				fmt.Println(l.run(l.gateway, "", "sh", "-c", "ss -tan | cut -d' ' -f1 | sort | uniq -c; nft list ruleset"))
				l.run(l.gateway, "", "nft", "flush", "ruleset")
			} else {
				g.must(order{Op: "stop"})
			}
			slowest, bad := l.direct(c[0], c[1], 20000, n, "")
			t.Logf("%d direct connections, the slowest took %v", n, slowest)
			if bad > 0 {
				t.Errorf("%d of %d direct connections failed or stalled; the slowest took %v", bad, n, slowest)
				fmt.Println(l.run(l.gateway, "", "ss", "-tan"))
			}
			g.must(order{Op: "close"})
			l.clean()
		})
	}
}
