// Command bench measures mailweir beside what it is to be compared with: plain routing, a bare TPROXY relay in Go,
// HAProxy (when installed), and a bare Go TLS relay. Each stands in a lab of its own; all are alive at the same time
// and every test goes round them in turn, several times, so that what disturbs the machine disturbs all of them.
// What counts are the medians of the ratios within a round.
//
//	sudo scripts/bench/run [-repeats 5] [-time 2s] [-only REGEXP]
//
// The load generator, the sink and the relays are this program again, in other roles (package comment of load.go).
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"
)

func main() {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role); err != nil {
			fmt.Fprintln(os.Stderr, "bench", role+":", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.IntVar(&o.repeats, "repeats", 5, "rounds of every test")
	flag.DurationVar(&o.time, "time", 2*time.Second, "length of one measurement")
	flag.StringVar(&o.binary, "mailweir", "bin/mailweir", "the mailweir to measure")
	only := flag.String("only", "", "tests whose names match; idle weighs sessions")
	paths := flag.String("paths", "direct,haproxy,relay,tls-relay,mailweir", "what to measure")
	flag.Parse()
	o.paths = strings.Split(*paths, ",")
	var err error
	if o.only, err = regexp.Compile(*only); err == nil {
		err = bench(context.Background(), os.Stdout, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	repeats int
	time    time.Duration
	binary  string
	paths   []string
	only    *regexp.Regexp
}

// test is one measurement: what the load generator does, and with which paths it can be done.
type test struct {
	name   string
	job    job
	paths  []string
	budget string
}

// tests are listed in the order of the page. Numbers (G2 …) are those of the budget table.
func tests() []test {
	plain := []string{"direct", "haproxy", "relay", "mailweir"}
	tls := []string{"direct", "tls-relay", "mailweir"}
	return []test{
		{"cps-c10", job{Port: 25, Sessions: 10, Kind: "connect"}, plain, "G1: ≥ 0.45 direct, ≥ 0.95 haproxy"},
		{"smtp-1K-c10", job{Port: 25, Sessions: 10, Size: 1 << 10}, plain, "G2: ≥ 0.45 direct, ≥ 0.80 haproxy; G9 p99 ≤ 1.6 direct"},
		{"smtp-30K-c10", job{Port: 25, Sessions: 10, Size: 30 << 10}, plain, "G3: ≥ 0.40 direct, ≥ 0.75 haproxy; G9 p99 ≤ 2.4 direct"},
		{"keep-30K-c10", job{Port: 25, Sessions: 10, Size: 30 << 10, Kind: "keep"}, plain, "G4: ≥ 0.30 direct, ≥ 0.55 haproxy"},
		{"smtp-1M-c10", job{Port: 25, Sessions: 10, Size: 1 << 20}, plain, "G5: ≥ 0.22 direct; G9 p99 ≤ 4 direct; G7 ≤ 4.5 CPU s/GB"},
		{"smtp-25M-c1", job{Port: 25, Sessions: 1, Size: 25 << 20}, plain, "G6: ≥ 0.15 direct"},
		{"lat-1K-c1", job{Port: 25, Sessions: 1, Size: 1 << 10}, plain, "G8: p50 ≤ +0.6 ms and ≤ 2.5 direct"},
		{"lat-30K-c1", job{Port: 25, Sessions: 1, Size: 30 << 10}, plain, "G8: p50 ≤ +0.8 ms and ≤ 2.5 direct"},
		{"hs-c10", job{Port: 465, Sessions: 10, Kind: "connect", TLS: "implicit"}, tls, "G11: ≥ 0.90 tls-relay; G12 ≤ 1.8 CPU s/1000"},
		{"starttls-1K-c10", job{Port: 587, Sessions: 10, Size: 1 << 10, TLS: "starttls"}, []string{"direct", "mailweir"}, ""},
		{"starttls-30K-c10", job{Port: 587, Sessions: 10, Size: 30 << 10, TLS: "starttls"}, []string{"direct", "mailweir"}, ""},
		{"implicit-30K-c10", job{Port: 465, Sessions: 10, Size: 30 << 10, TLS: "implicit"}, tls, "G11: ≥ 0.80 tls-relay, ≥ 0.40 direct"},
		{"tls-25M-c1", job{Port: 465, Sessions: 1, Size: 25 << 20, TLS: "implicit"}, tls, "G13 (bulk): ≥ 0.42 direct, here inspected"},
	}
}

func bench(ctx context.Context, out io.Writer, o options) error {
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	var paths []*path
	defer func() {
		for _, p := range paths {
			p.close()
		}
	}()
	for _, name := range o.paths {
		if name == "haproxy" {
			if _, err := exec.LookPath("haproxy"); err != nil {
				continue
			}
		}
		p, err := newPath(ctx, name, o.binary)
		if err != nil {
			return fmt.Errorf("build path %s: %w", name, err)
		}
		paths = append(paths, p)
	}
	machine(out)
	fmt.Fprintf(out, "%d rounds of %s each; median (lowest-highest); x is the median of the ratios to direct within a round.\n", o.repeats, o.time)
	for _, t := range tests() {
		if !o.only.MatchString(t.name) {
			continue
		}
		if err := measure(ctx, out, t, paths, o); err != nil {
			return err
		}
	}
	for _, p := range paths {
		if p.name == "direct" || !o.only.MatchString("idle") {
			continue
		}
		if err := idle(ctx, out, p); err != nil {
			return err
		}
	}
	return nil
}

// machine says where and what was measured.
func machine(out io.Writer) {
	commit, _ := exec.Command("git", "describe", "--always", "--dirty").Output()
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fmt.Fprintf(out, "%d cores, Linux %s, %s, mailweir %s\n", runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version(), strings.TrimSpace(string(commit)))
}

// measure runs one test on every path that has it, in turn, and prints a table.
func measure(ctx context.Context, out io.Writer, t test, paths []*path, o options) error {
	results := map[string][]result{}
	for range o.repeats {
		for _, p := range paths {
			if !contains(t.paths, p.name) {
				continue
			}
			j := t.job
			j.Time = o.time
			before := p.cpu()
			r, err := p.load(ctx, j)
			if err != nil {
				return fmt.Errorf("%s on %s: %w", t.name, p.name, err)
			}
			r.CPU = p.cpu() - before
			results[p.name] = append(results[p.name], r)
		}
	}
	fmt.Fprintf(out, "\n%s  %s\n", t.name, t.budget)
	fmt.Fprintf(out, "  %-10s %28s %8s %10s %10s %8s %8s %12s\n", "path", "per second", "x", "p50 ms", "p99 ms", "x p50", "x p99", "CPU s/1000")
	direct := results["direct"]
	for _, p := range paths {
		rs := results[p.name]
		if len(rs) == 0 {
			continue
		}
		rate := func(r result) float64 { return r.Rate }
		p50 := func(r result) float64 { return r.P50.Seconds() * 1000 }
		p99 := func(r result) float64 { return r.P99.Seconds() * 1000 }
		lo, mid, hi := spread(rs, rate)
		_, m50, _ := spread(rs, p50)
		_, m99, _ := spread(rs, p99)
		_, cpu, _ := spread(rs, func(r result) float64 { return r.CPU.Seconds() / float64(max(r.Done, 1)) * 1000 })
		fmt.Fprintf(out, "  %-10s %28s %8.2f %10.2f %10.2f %8.2f %8.2f %12.2f\n", p.name, fmt.Sprintf("%.1f (%.1f-%.1f)", mid, lo, hi),
			ratio(rs, direct, rate), m50, m99, ratio(rs, direct, p50), ratio(rs, direct, p99), cpu)
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// idleSessions is how many sessions are held to weigh one.
const idleSessions = 1000

// idle weighs sessions that have said EHLO and nothing since.
func idle(ctx context.Context, out io.Writer, p *path) error {
	for _, j := range []job{{Port: 25, Kind: "idle", Sessions: idleSessions}, {Port: 465, Kind: "idle", Sessions: idleSessions, TLS: "implicit"}} {
		if p.pid() == 0 || j.TLS != "" && p.name != "mailweir" && p.name != "tls-relay" || j.TLS == "" && p.name == "tls-relay" {
			continue
		}
		before := p.fresh // what sessions that are gone have left is not given back at once
		up, held, err := p.hold(ctx, j)
		if err != nil {
			log := p.log()
			return fmt.Errorf("hold sessions on %s: %w\n%s", p.name, err, log[max(0, len(log)-2000):])
		}
		fmt.Fprintf(out, "\nidle %s port %d: %d of %d sessions up; RSS %.1f MiB when started, %.1f MiB with them, %.1f KiB a session; %.1f descriptors a session\n",
			p.name, j.Port, up, j.Sessions, float64(before)/(1<<20), float64(held.rss)/(1<<20), float64(held.rss-before)/1024/float64(max(up, 1)), float64(held.files)/float64(max(up, 1)))
	}
	return nil
}
