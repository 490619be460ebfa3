package divert

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// SYN is the first packet of a connection, on which a Decide decides.
type SYN struct {
	Client netip.AddrPort
	Server netip.AddrPort
	Kind   string // Output
	Proc   string // path of the local program; empty when it could not be found
}

// Verdict is what becomes of a connection.
type Verdict uint8

// The verdicts. The zero value is VerdictCheck.
const (
	VerdictCheck  Verdict = iota // divert it
	VerdictPass                  // let it go directly
	VerdictReject                // answer with a reset
	VerdictDrop                  // do not answer
)

// Decide judges a first packet. It must answer soon: the packet waits.
type Decide func(SYN) Verdict

// queueLength is how many first packets may wait; more are diverted unasked.
const queueLength = 4096

// queue asks Decide about the first packets of an NFQUEUE.
type queue struct {
	nf     *nfqueue.Nfqueue
	cancel context.CancelFunc
	decide Decide
	marks  marks
	log    *slog.Logger
}

func openQueue(number uint16, m marks, decide Decide, log *slog.Logger) (*queue, error) {
	nf, err := nfqueue.Open(&nfqueue.Config{NfQueue: number, MaxQueueLen: queueLength, MaxPacketLen: 128,
		Copymode: nfqueue.NfQnlCopyPacket, Flags: nfqueue.NfQaCfgFlagFailOpen, AfFamily: unix.AF_UNSPEC})
	if err != nil {
		return nil, fmt.Errorf("open nfqueue %d: %w", number, err)
	}
	_ = nf.Con.SetReadBuffer(1 << 20) // N3: more is better, less still works
	_ = nf.SetOption(netlink.NoENOBUFS, true)
	ctx, cancel := context.WithCancel(context.Background())
	q := &queue{nf: nf, cancel: cancel, decide: decide, marks: m, log: log}
	err = nf.RegisterWithErrorFunc(ctx, q.packet, func(err error) int {
		if ctx.Err() != nil {
			return 1
		}
		if e := (*netlink.OpError)(nil); errors.As(err, &e) && (e.Timeout() || e.Temporary()) || errors.Is(err, unix.ENOBUFS) {
			return 0 // packets that we missed are diverted unasked
		}
		log.Error("nfqueue ended", "queue", number, "err", err)
		return 1
	})
	if err != nil {
		cancel()
		_ = nf.Close()
		return nil, fmt.Errorf("bind nfqueue %d: %w", number, err)
	}
	return q, nil
}

func (q *queue) close() error {
	q.cancel()
	return q.nf.Close()
}

func (q *queue) packet(a nfqueue.Attribute) int {
	if a.PacketID == nil {
		return 0
	}
	verdict := VerdictCheck
	if a.Payload != nil {
		if s, ok := parseSYN(*a.Payload); ok {
			verdict = q.decide(s)
		}
	}
	old := uint32(0)
	if a.Mark != nil {
		old = *a.Mark
	}
	var err error
	switch verdict {
	case VerdictDrop:
		err = q.nf.SetVerdict(*a.PacketID, nfqueue.NfDrop)
	case VerdictPass:
		err = q.nf.SetVerdictWithOption(*a.PacketID, nfqueue.NfAccept, nfqueue.WithMark(q.marks.passMark().on(old)))
	case VerdictReject:
		err = q.nf.SetVerdictWithOption(*a.PacketID, nfqueue.NfAccept, nfqueue.WithMark(q.marks.rejectMark().on(old)))
	default:
		err = q.nf.SetVerdict(*a.PacketID, nfqueue.NfAccept)
	}
	if err != nil {
		q.log.Warn("nfqueue verdict", "err", err)
	}
	return 0
}

// on writes m onto a packet's mark.
func (m Mark) on(mark uint32) uint32 { return mark&^m.Mask | m.Value }

// parseSYN reads addresses and ports of an IP packet that holds TCP.
func parseSYN(p []byte) (s SYN, ok bool) {
	if len(p) < 1 {
		return s, false
	}
	var src, dst netip.Addr
	var tcp []byte
	switch {
	case p[0]>>4 == 4 && len(p) >= 20:
		n := int(p[0]&15) * 4
		if p[9] != unix.IPPROTO_TCP || n < 20 || len(p) < n {
			return s, false
		}
		src, dst, tcp = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20])), p[n:]
	case p[0]>>4 == 6 && len(p) >= 40 && p[6] == unix.IPPROTO_TCP:
		// Programs that put extension headers before TCP are not told apart: they are diverted.
		src, dst, tcp = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40])), p[40:]
	}
	if len(tcp) < 4 {
		return s, false
	}
	return SYN{
		Client: netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp)),
		Server: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:])),
		Kind:   Output,
	}, true
}

// queueSupport finds out, in a table that never comes to life, how this kernel can queue: by nft's own expression, by
// the xtables target, or not at all.
func queueSupport() (compat bool, err error) {
	native := tryRule([]term{isTCP{}, queueTo{autoQueue, false}})
	if native == nil {
		return false, nil
	}
	if e := tryRule([]term{isTCP{}, queueTo{autoQueue, true}}); e == nil {
		return true, nil
	}
	return false, fmt.Errorf("this kernel cannot queue packets: it has neither CONFIG_NFT_QUEUE nor CONFIG_NFT_COMPAT with CONFIG_NETFILTER_XT_TARGET_NFQUEUE: %w", native)
}

// tryRule asks the kernel whether it takes a rule, in one transaction that ends with the removal of everything.
func tryRule(terms []term) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: TableName + "_probe", Family: nftables.TableFamilyINet})
	hook, kind, priority := nftables.ChainHookPrerouting, nftables.ChainTypeFilter, nftables.ChainPriorityRef(prerouteHook)
	for _, t := range terms {
		if _, ok := t.(queueTo); ok {
			hook = nftables.ChainHookOutput
		}
	}
	chain := conn.AddChain(&nftables.Chain{Name: "probe", Table: table, Hooknum: hook, Type: kind, Priority: priority})
	r := &rendering{conn: conn, table: table}
	for _, t := range terms {
		t.exprs(r)
	}
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.out})
	conn.DelTable(table)
	return conn.Flush()
}
