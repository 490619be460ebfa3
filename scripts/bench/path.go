package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sort"
	"strings"
	"time"

	"mailweir/scripts/lab"
)

const roleVariable = "MAILWEIR_BENCH_ROLE"

// path is one way from a client to a server: a lab with something in its gateway.
type path struct {
	name    string
	lab     *lab.Lab
	gateway func() int // process id of what is measured, 0 for plain routing
	log     func() string
	fresh   int64 // resident memory of the gateway when it was started
	in      io.Writer
	out     *bufio.Reader
}

func newPath(ctx context.Context, name, binary string) (*path, error) {
	l, err := lab.New(ctx)
	if err != nil {
		return nil, err
	}
	p := &path{name: name, lab: l, gateway: func() int { return 0 }, log: func() string { return "" }}
	if err := p.build(ctx, binary); err != nil {
		l.Close()
		return nil, err
	}
	return p, nil
}

func (p *path) build(ctx context.Context, binary string) error {
	pki, err := lab.NewPKI(p.lab.Path("pki"))
	if err != nil {
		return err
	}
	if _, _, err := p.role(ctx, p.lab.Server, "sink", pki.CertFile, pki.KeyFile); err != nil {
		return err
	}
	for _, port := range []int{25, 587, 465} {
		if err := p.lab.Server.Reachable(ctx, lab.HostPort("127.0.0.1", port)); err != nil {
			return err
		}
	}
	ca := pki.CAFile
	switch p.name {
	case "haproxy":
		err = p.haproxy(ctx)
	case "relay":
		err = p.relay(ctx, "relay")
	case "tls-relay":
		err = p.relay(ctx, "tls-relay", pki.CertFile, pki.KeyFile, pki.CAFile)
	case "mailweir":
		const divert = "Auto(interface:lan protected:25,587,465)"
		g, err := p.lab.StartGateway(ctx, lab.GatewayConfig{Name: "bench", Binary: binary, NS: p.lab.Gateway, Settings: map[string]string{
			"LinuxFirewall.ForwardDivert": divert, "LinuxFirewall.UnwrapSsl": "Yes", "LinuxFirewall.TlsTrustedCa": pki.CAFile,
			"Root.DefaultLogLevel": "Notice",
		}})
		if err != nil {
			return err
		}
		p.gateway, p.log, ca = g.Pid, g.Log, g.CAFile
	}
	if err != nil {
		return err
	}
	if p.pid() != 0 {
		if p.fresh, err = lab.Resident(p.pid()); err != nil {
			return err
		}
	}
	p.in, p.out, err = p.role(ctx, p.lab.Client, "load", ca)
	return err
}

// role starts this program again in a namespace.
func (p *path) role(ctx context.Context, ns *lab.Namespace, role string, args ...string) (io.Writer, *bufio.Reader, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := ns.Command(ctx, self, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := ns.Start(cmd); err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", role, err)
	}
	p.stopWith(cmd)
	if role == "relay" || role == "tls-relay" {
		p.gateway = func() int { return cmd.Process.Pid }
	}
	return in, bufio.NewReader(out), nil
}

func (p *path) stopWith(cmd *exec.Cmd) {
	p.lab.OnClose(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// rules diverts the lab's mail ports to a listener of the gateway, as any TPROXY relay does.
func (p *path) rules(ctx context.Context, port int) error {
	nft := fmt.Sprintf(`table inet bench {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		meta l4proto tcp socket transparent 1 meta mark set 1 accept
		iifname "lan" tcp dport { 25, 587, 465 } meta mark set 1 tproxy ip to 127.0.0.1:%d accept
	}
}
`, port)
	if out, err := p.lab.Gateway.Run(ctx, nft, "nft", "-f", "-"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, args := range []string{"rule add fwmark 1 lookup 100", "route add local 0.0.0.0/0 dev lo table 100"} {
		if out, err := p.lab.Gateway.Run(ctx, "", "ip", strings.Fields(args)...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}

func (p *path) relay(ctx context.Context, role string, args ...string) error {
	_, out, err := p.role(ctx, p.lab.Gateway, role, args...)
	if err != nil {
		return err
	}
	line, err := out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("wait for %s: %w", role, err)
	}
	var port int
	if _, err := fmt.Sscan(line, &port); err != nil {
		return fmt.Errorf("read port: %w", err)
	}
	return p.rules(ctx, port)
}

func (p *path) haproxy(ctx context.Context) error {
	conf := p.lab.Path("haproxy.cfg")
	text := `global
	maxconn 8000
defaults
	mode tcp
	timeout connect 10s
	timeout client 300s
	timeout server 300s
listen smtp
	bind 127.0.0.1:8025 transparent
	source 0.0.0.0 usesrc clientip
	server s ` + lab.ServerIP4 + `:25
`
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	cmd := p.lab.Gateway.Command(ctx, "haproxy", "-db", "-f", conf)
	cmd.Stderr = os.Stderr
	if err := p.lab.Gateway.Start(cmd); err != nil {
		return fmt.Errorf("start haproxy: %w", err)
	}
	p.stopWith(cmd)
	p.gateway = func() int { return cmd.Process.Pid }
	if err := p.lab.Gateway.Reachable(ctx, "127.0.0.1:8025"); err != nil {
		return err
	}
	return p.rules(ctx, 8025)
}

func (p *path) close()   { p.lab.Close() }
func (p *path) pid() int { return p.gateway() }

// cpu returns the processor time of the gateway so far.
func (p *path) cpu() time.Duration {
	if p.pid() == 0 {
		return 0
	}
	d, err := lab.CPU(p.pid())
	if err != nil {
		return 0
	}
	return d
}

func (p *path) ask(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = p.in.Write(append(text, '\n'))
	return err
}

func (p *path) answer(v any) error {
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("load generator ended: %w", err)
	}
	return json.Unmarshal(line, v)
}

// load has the load generator do a job.
func (p *path) load(_ context.Context, j job) (result, error) {
	if err := p.ask(j); err != nil {
		return result{}, err
	}
	var r result
	if err := p.answer(&r); err != nil {
		return r, err
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

type weight struct {
	rss   int64
	files int
}

// hold has the load generator open sessions, weighs the gateway, and lets them go.
func (p *path) hold(ctx context.Context, j job) (up int, w weight, err error) {
	r, err := p.load(ctx, j)
	if err != nil {
		return 0, w, err
	}
	if w.rss, err = lab.Resident(p.pid()); err != nil {
		return 0, w, err
	}
	if w.files, err = lab.Files(p.pid()); err != nil {
		return 0, w, err
	}
	_, err = p.load(ctx, job{Kind: "release"})
	return r.Done, w, err
}

// spread returns the lowest, the median and the highest of a figure.
func spread(rs []result, f func(result) float64) (lo, mid, hi float64) {
	v := make([]float64, len(rs))
	for i, r := range rs {
		v[i] = f(r)
	}
	sort.Float64s(v)
	return v[0], v[len(v)/2], v[len(v)-1]
}

// ratio returns the median of the ratios round by round.
func ratio(rs, to []result, f func(result) float64) float64 {
	var v []float64
	for i := range min(len(rs), len(to)) {
		if d := f(to[i]); d > 0 {
			v = append(v, f(rs[i])/d)
		}
	}
	if len(v) == 0 {
		return 0
	}
	sort.Float64s(v)
	return v[len(v)/2]
}
