package divert

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// States of a TCP socket, as bits of inet_diag's filter (include/net/tcp_states.h).
const (
	stEstablished = 1 << 1
	stSynSent     = 1 << 2
	stSynRecv     = 1 << 3
	stFinWait1    = 1 << 4
	stFinWait2    = 1 << 5
	stTimeWait    = 1 << 6
	stCloseWait   = 1 << 8
	stLastAck     = 1 << 9
	stListen      = 1 << 10
	stClosing     = 1 << 11
	stNewSynRecv  = 1 << 12

	// stLive still have octets to carry, stLingering have none.
	stLive      = stEstablished | stSynSent | stSynRecv | stFinWait1 | stCloseWait | stLastAck | stClosing | stNewSynRecv
	stLingering = stFinWait2 | stTimeWait
)

// socketInfo is one TCP socket of the kernel, as inet_diag tells.
type socketInfo struct {
	v             int
	state         int // as a bit
	id            []byte
	local, remote netip.AddrPort
	queued        uint32 // of a listener: connections that wait to be accepted
	uid, inode    uint32
}

// diagRequest is struct inet_diag_req_v2 of linux/inet_diag.h.
type diagRequest struct {
	family byte
	states uint32
	id     []byte // struct inet_diag_sockid, 48 octets
}

func (r *diagRequest) Len() int { return 56 }

func (r *diagRequest) Serialize() []byte {
	b := make([]byte, 56)
	b[0], b[1] = r.family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], r.states)
	copy(b[8:], r.id)
	return b
}

// markFilter is inet_diag byte code: sockets whose mark has these bits.
func markFilter(m Mark) *nl.RtAttr {
	const reqBytecode, markCond = 1, 10 // INET_DIAG_REQ_BYTECODE, INET_DIAG_BC_MARK_COND
	b := make([]byte, 12)
	b[0], b[1] = markCond, 12
	binary.NativeEndian.PutUint16(b[2:], 16) // past the end: no
	binary.NativeEndian.PutUint32(b[4:], m.Value)
	binary.NativeEndian.PutUint32(b[8:], m.Mask)
	return nl.NewRtAttr(reqBytecode, b)
}

func diagFamily(v int) byte {
	if v == 6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// dump lists TCP sockets in the given states; with a mark, those that carry it.
func dump(v int, states uint32, mark *Mark) ([]socketInfo, error) {
	msgs, err := again(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(&diagRequest{family: diagFamily(v), states: states})
		if mark != nil {
			req.AddData(markFilter(*mark))
		}
		return req.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	})
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list IPv%d sockets: %w", v, err)
	}
	var list []socketInfo
	for _, m := range msgs {
		if s, ok := parseDiag(m); ok && s.v == v {
			list = append(list, s)
		}
	}
	return list, nil
}

// parseDiag reads a struct inet_diag_msg.
func parseDiag(m []byte) (s socketInfo, ok bool) {
	if len(m) < 72 {
		return s, false
	}
	s = socketInfo{v: 4, state: 1 << m[1], id: m[4:52]}
	src, dst := m[8:24], m[24:40]
	var a, b netip.Addr
	if m[0] == unix.AF_INET6 {
		s.v = 6
		a, b = netip.AddrFrom16([16]byte(src)), netip.AddrFrom16([16]byte(dst))
	} else {
		a, b = netip.AddrFrom4([4]byte(src)), netip.AddrFrom4([4]byte(dst))
	}
	s.local = netip.AddrPortFrom(a, binary.BigEndian.Uint16(m[4:]))
	s.remote = netip.AddrPortFrom(b, binary.BigEndian.Uint16(m[6:]))
	s.queued = binary.NativeEndian.Uint32(m[56:])
	s.uid, s.inode = binary.NativeEndian.Uint32(m[64:]), binary.NativeEndian.Uint32(m[68:])
	return s, true
}

// find looks up the one socket of this host that has the two addresses.
func find(local, remote netip.AddrPort) (socketInfo, error) {
	v, id := 4, make([]byte, 48)
	binary.BigEndian.PutUint16(id, local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:], local.Addr().AsSlice())
	copy(id[20:], remote.Addr().AsSlice())
	for i := 40; i < 48; i++ {
		id[i] = 0xff // INET_DIAG_NOCOOKIE
	}
	if local.Addr().Is6() {
		v = 6
	}
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	req.AddData(&diagRequest{family: diagFamily(v), states: 0xffffffff, id: id})
	msgs, err := req.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if err != nil {
		return socketInfo{}, fmt.Errorf("find socket %v to %v: %w", local, remote, err)
	}
	for _, m := range msgs {
		if s, ok := parseDiag(m); ok && unmap(s.local) == local && unmap(s.remote) == remote {
			return s, nil
		}
	}
	return socketInfo{}, fmt.Errorf("find socket %v to %v: none", local, remote)
}

// destroy takes a socket away (SOCK_DESTROY, CONFIG_INET_DIAG_DESTROY).
func destroy(s socketInfo) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData(&diagRequest{family: diagFamily(s.v), states: uint32(s.state), id: s.id})
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // gone by itself
	}
	return err
}

// marked lists the sockets that carry one of the marks.
func marked(states uint32, marks ...Mark) ([]socketInfo, error) {
	var list []socketInfo
	var errs []error
	for _, v := range []int{4, 6} {
		if v == 6 && !haveIPv6() {
			continue
		}
		for i := range marks {
			l, err := dump(v, states, &marks[i])
			list, errs = append(list, l...), append(errs, err)
		}
	}
	return list, errors.Join(errs...)
}

// sweepSockets destroys sockets in the given states that carry one of our marks. Once the rules are gone such a
// socket is an obstacle: early demux hands it packets that a client and a server exchange directly, and the kernel
// does not forward a packet that belongs to a socket (docs/design/002-stop-without-stall.md).
func sweepSockets(states uint32, marks ...Mark) (n int, err error) {
	list, err := marked(states, marks...)
	if err != nil {
		return 0, err
	}
	for _, s := range list {
		if e := destroy(s); e != nil {
			err = fmt.Errorf("destroy socket %v to %v: %w", s.local, s.remote, e)
			continue
		}
		n++
	}
	return n, err
}
