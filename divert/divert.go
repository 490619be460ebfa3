// Package divert brings connections to the gateway: it makes nftables TPROXY rules, policy rules and routes, opens the
// transparent sockets on both legs, decides on first packets, and finds out what is in the way (doctor).
//
// There are three independent diverts: input (servers on this host), forward (connections that this host routes) and
// output (programs of this host). [Open] opens listeners, [Divert.Apply] writes the rules last, [Divert.Stop] removes
// them first: after a deliberate stop mail flows directly. Where the gateway dies instead, Settings.FailMode decides.
// The kernel holds what a [Plan] says, and nothing else of ours: one inet table, four policy rules and one route a
// family, recognisable by name and number, so that [Off] needs neither configuration nor the gateway.
//
// The package works in the network namespace of the calling thread, and for TCP only. It touches no table, rule or
// sysctl of anybody else.
package divert

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Config is what the gateway wires in.
type Config struct {
	Settings
	Ports  func(port uint16) bool     // whether a door serves the port; nil: all do. Other ports are not diverted
	Decide Decide                     // judges first packets of local programs after ExcludedProc; may be nil
	Log    *slog.Logger               // nil: silent
	Events func(event, detail string) // "divert-repaired", "divert-flapping", …; may be nil
}

// Divert is the divert of one gateway.
type Divert struct {
	config   Config
	marks    marks
	families []int
	compat   bool
	lock     net.Listener // held while we live: one gateway a network namespace

	op      sync.Mutex // held by whoever changes the kernel's state
	kernel  ruleset
	now     *wanted // what the kernel holds; nil before Apply and after the end
	queue   *queue
	stop    context.CancelFunc // ends the watcher
	ended   chan struct{}      // closed when the watcher has ended
	before  Established
	stopped bool
	base    map[string]uint64 // counters of rules that were replaced

	mu        sync.Mutex
	settings  Settings
	listeners []*Listener

	accepted     [3]atomic.Int64
	bindFailures atomic.Int64
	repaired     atomic.Int64
}

var kinds = [...]string{Input, Forward, Output}

// lockName is an abstract socket: it belongs to a network namespace and vanishes with the process that holds it.
const lockName = "@mailweir-divert"

// Open prepares a divert: it opens the listeners and sweeps what a predecessor has left. Rules come with Apply.
func Open(ctx context.Context, c Config) (*Divert, error) {
	if err := c.Settings.Check(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	lock, err := net.Listen("unix", lockName)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, errors.New("open divert: another gateway diverts in this network namespace already")
	}
	if err != nil {
		return nil, fmt.Errorf("open divert: lock: %w", err)
	}
	d := &Divert{config: c, marks: c.Settings.marks(), settings: c.Settings, lock: lock, base: map[string]uint64{}}
	if err := d.open(ctx); err != nil {
		return nil, errors.Join(err, d.closeListeners(), lock.Close())
	}
	return d, nil
}

func (d *Divert) open(ctx context.Context) error {
	if err := d.sweep(); err != nil {
		return fmt.Errorf("sweep what a predecessor left: %w", err)
	}
	d.families = []int{4}
	if haveIPv6() {
		d.families = append(d.families, 6)
	}
	for i, kind := range kinds {
		for _, v := range slices.Clone(d.families) {
			l, err := listen(ctx, kind, v, d.marks.client)
			if v == 6 && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
				// disable_ipv6 on lo, or no IPv6: no rules without a listener (C1-26).
				d.config.Log.Warn("IPv6 connections are not diverted: no listener can be opened on ::1", "err", err)
				d.families = []int{4}
				continue
			}
			if err != nil {
				return err
			}
			l.accepted = &d.accepted[i]
			l.proc = localProgram
			d.listeners = append(d.listeners, l)
		}
	}
	return d.prepareQueue(d.settings)
}

// prepareQueue opens the queue that the settings need, before any rule fills it, or closes the one they do not.
func (d *Divert) prepareQueue(s Settings) error {
	if !d.asks(s) {
		if d.queue == nil {
			return nil
		}
		err := d.queue.close()
		d.queue = nil
		return err
	}
	if d.queue != nil {
		return nil
	}
	compat, err := queueSupport()
	if err != nil {
		return fmt.Errorf("ExcludedProc cannot be used: %w", err)
	}
	d.compat = compat
	d.queue, err = openQueue(s.OutputDivertNfqueueNumber.number(), d.marks, d.decide, d.config.Log)
	return err
}

// asks says whether first packets must be decided on.
func (d *Divert) asks(s Settings) bool {
	on := slices.ContainsFunc(s.OutputDivert, Spec.On)
	return on && (len(s.ExcludedProc) > 0 || d.config.Decide != nil)
}

func (d *Divert) decide(s SYN) Verdict {
	s.Proc, _ = localProgram(s.Client, s.Server)
	if excluded(d.current().ExcludedProc, s.Proc) {
		return VerdictPass
	}
	if d.config.Decide != nil {
		return d.config.Decide(s)
	}
	return VerdictCheck
}

// sweep removes what a predecessor has left, so far as that does not open a gap: under FailMode Closed its rules go on
// refusing connections until Apply replaces them.
func (d *Divert) sweep() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	chains, err := chainNames(conn)
	if err != nil {
		return fmt.Errorf("list nft chains: %w", explain(err))
	}
	if len(chains) > 0 {
		d.config.Log.Warn("a predecessor left its rules", "replaced", "when the new ones are written", "closed", d.settings.closed())
	}
	if d.settings.closed() && len(chains) > 0 {
		return nil
	}
	if len(chains) > 0 {
		if err := d.kernel.remove(); err != nil {
			return err
		}
	}
	_, err = unroute()
	return err
}

// Listeners returns the listeners: one for each kind and address family, whatever is diverted at the moment. They are
// closed by Stop.
func (d *Divert) Listeners() []*Listener {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.listeners)
}

func (d *Divert) closeListeners() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, l := range d.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (d *Divert) current() Settings {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settings
}

func (d *Divert) event(event, detail string) {
	if d.config.Events != nil {
		d.config.Events(event, detail)
	}
}

// want tells what the kernel shall hold under the settings.
func (d *Divert) want(s Settings) *wanted {
	w := &wanted{settings: s, marks: d.marks, listeners: map[string][]netip.AddrPort{}, families: d.families,
		door: d.config.Ports, asks: d.asks(s), compat: d.compat}
	for _, l := range d.Listeners() {
		w.listeners[l.Kind] = append(w.listeners[l.Kind], l.addr)
	}
	return w
}

// Apply writes the rules. Connections are diverted from the moment it returns, so somebody should accept them.
func (d *Divert) Apply(ctx context.Context) error {
	d.op.Lock()
	defer d.op.Unlock()
	if d.now != nil || d.stopped {
		return errors.New("apply divert: rules are written already, or the divert was stopped")
	}
	w := d.want(d.current())
	before, passed, err := w.before()
	if err != nil {
		return fmt.Errorf("look for connections from before: %w", err)
	}
	p := w.plan()
	if _, err := route(p); err != nil { // first the ways, then the marks that send packets there
		return errors.Join(fmt.Errorf("apply divert: %w", err), d.undo())
	}
	if err := d.kernel.apply(p, true, passed); err != nil {
		return errors.Join(fmt.Errorf("apply divert: %w", err), d.undo())
	}
	d.now, d.before = w, before
	d.reportBefore()
	if err := d.startWatch(); err != nil {
		d.now = nil
		return errors.Join(fmt.Errorf("apply divert: %w", err), d.undo())
	}
	return nil
}

// undo removes what a failed Apply has begun, unless connections are to be refused while there is no gateway.
func (d *Divert) undo() error {
	if conn, err := nftables.New(); err == nil && d.settings.closed() {
		if chains, err := chainNames(conn); err == nil && len(chains) > 0 {
			return nil
		}
	}
	_, err := unroute()
	return errors.Join(d.kernel.remove(), err)
}

func (d *Divert) reportBefore() {
	b := d.before
	if b.Local+b.Routed > 0 {
		d.config.Log.Warn("connections from before are not inspected; they stay as they are until they end",
			"routed", b.Routed, "local", b.Local)
		d.event("divert-established", fmt.Sprintf("routed %d, local %d", b.Routed, b.Local))
	}
	if !b.Known {
		d.config.Log.Info("routed connections from before cannot be counted", "reason", b.Reason)
	}
}

func (d *Divert) startWatch() error {
	nft, err := subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return err
	}
	rules, err := subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return errors.Join(err, nft.close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.stop, d.ended = cancel, make(chan struct{})
	go func() {
		defer close(d.ended)
		d.watch(ctx, nft, rules)
	}()
	return nil
}

// Set changes the settings of a living divert: what is diverted from now on. Connections that live go on. When it
// fails the old state goes on too. Marks cannot be changed: live sockets carry them (C1-15).
func (d *Divert) Set(ctx context.Context, s Settings) error {
	if err := s.Check(); err != nil {
		return err
	}
	if s.marks() != d.marks {
		return errors.New("set divert: marks cannot be changed while connections carry them; restart the gateway")
	}
	d.op.Lock()
	defer d.op.Unlock()
	if d.stopped {
		return errors.New("set divert: it is stopped")
	}
	old := d.current()
	if d.queue != nil && old.OutputDivertNfqueueNumber != s.OutputDivertNfqueueNumber && d.asks(s) {
		return errors.New("set divert: OutputDivertNfqueueNumber cannot be changed while the queue is in use; restart the gateway")
	}
	if d.asks(s) {
		if err := d.prepareQueue(s); err != nil {
			return fmt.Errorf("set divert: %w", err)
		}
	}
	if d.now != nil {
		if err := d.change(s); err != nil {
			return errors.Join(fmt.Errorf("set divert: %w", err), d.prepareQueue(old))
		}
	}
	d.mu.Lock()
	d.settings = s
	d.mu.Unlock()
	if !d.asks(s) {
		return d.prepareQueue(s) // after its rules have gone
	}
	return nil
}

// change makes the kernel's state that of s, with everything that lives kept alive.
func (d *Divert) change(s Settings) error {
	next := d.want(s)
	next.former = d.now.replacedBy(next)
	fresh := d.now.settings.closed() != s.closed() // the flag of an nft table cannot be changed
	var carry map[string][]nftables.SetElement
	if fresh {
		var err error
		if carry, err = d.kernel.elements(d.now.plan()); err != nil {
			return err
		}
	}
	d.keepCounters()
	if err := d.kernel.apply(next.plan(), fresh, carry); err != nil {
		return err
	}
	d.now = next
	return nil
}

// keepCounters adds up counters that end with their rules.
func (d *Divert) keepCounters() {
	if _, err := d.kernel.rules(func(c string, n uint64) { d.base[counterName(c)] += n }); err != nil {
		d.config.Log.Warn("counters of replaced rules are lost", "err", err)
	}
}

// verify puts right what in the kernel is not as it should be, and tells what that was.
func (d *Divert) verify() (what string, err error) {
	d.op.Lock()
	defer d.op.Unlock()
	if d.now == nil {
		return "", nil
	}
	p := d.now.plan()
	ok, err := d.kernel.present(p)
	if err != nil {
		return "", err
	}
	changed, err := route(p)
	if err != nil {
		return "", err
	}
	switch {
	case !ok && changed:
		what = "nft table and policy routing"
	case !ok:
		what = "nft table"
	case changed:
		return "policy routing", nil
	default:
		return "", nil
	}
	return what, d.kernel.apply(p, false, nil)
}
