package divert

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// rendering makes expressions of one rule. The terms append to it in the order and with the registers that nft(8)
// itself uses: a test holds both against each other.
type rendering struct {
	conn  *nftables.Conn
	table *nftables.Table
	out   []expr.Any
	tcp   bool // the rule has said that it is about TCP
	err   error
}

func (r *rendering) add(e ...expr.Any) { r.out = append(r.out, e...) }

func (r *rendering) equal(data []byte) {
	r.add(&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data})
}

// onTCP makes sure that the transport header is one of TCP.
func (r *rendering) onTCP() {
	if r.tcp {
		return
	}
	r.tcp = true
	r.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1})
	r.equal([]byte{unix.IPPROTO_TCP})
}

func (r *rendering) name(key expr.MetaKey, name string) {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	r.add(&expr.Meta{Key: key, Register: 1})
	r.equal(data)
}

func nfproto(v int) byte {
	if v == 6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func (t family) exprs(r *rendering) {
	r.add(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1})
	r.equal([]byte{nfproto(t.v)})
}

func (t iifname) exprs(r *rendering) { r.name(expr.MetaKeyIIFNAME, t.name) }
func (t oifname) exprs(r *rendering) { r.name(expr.MetaKeyOIFNAME, t.name) }
func (isTCP) exprs(r *rendering)     { r.onTCP() }

func (t isICMP) exprs(r *rendering) {
	proto := byte(unix.IPPROTO_ICMP)
	if t.v == 6 {
		proto = unix.IPPROTO_ICMPV6
	}
	r.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1})
	r.equal([]byte{proto})
}

func (r *rendering) port(offset uint32, list []uint16) {
	r.onTCP()
	r.add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2})
	if len(list) == 1 {
		r.equal(binaryutil.BigEndian.PutUint16(list[0]))
		return
	}
	set := &nftables.Set{Table: r.table, Anonymous: true, Constant: true, KeyType: nftables.TypeInetService}
	elements := make([]nftables.SetElement, len(list))
	for i, p := range list {
		elements[i].Key = binaryutil.BigEndian.PutUint16(p)
	}
	r.err = errors.Join(r.err, r.conn.AddSet(set, elements))
	r.add(&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID})
}

func (t ports) exprs(r *rendering)    { r.port(2, t.list) }
func (t fromPort) exprs(r *rendering) { r.port(0, t.list) }

func (r *rendering) flags(op expr.CmpOp) {
	const fin, synFlag, ack = 1, 2, 16
	r.onTCP()
	r.add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{synFlag | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{synFlag}})
}

func (syn) exprs(r *rendering)    { r.flags(expr.CmpOpEq) }
func (notSyn) exprs(r *rendering) { r.flags(expr.CmpOpNeq) }

func (t fibType) exprs(r *rendering) {
	kind := uint32(unix.RTN_UNICAST)
	if t.kind == "local" {
		kind = unix.RTN_LOCAL
	}
	op := expr.CmpOpEq
	if t.not {
		op = expr.CmpOpNeq
	}
	r.add(&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagSADDR: t.source, FlagDADDR: !t.source},
		&expr.Cmp{Op: op, Register: 1, Data: binaryutil.NativeEndian.PutUint32(kind)})
}

func (r *rendering) bits(mask, xor uint32) {
	r.add(&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: binaryutil.NativeEndian.PutUint32(xor)})
}

func (t markIs) exprs(r *rendering) {
	r.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1})
	r.bits(t.m.Mask, 0)
	r.equal(binaryutil.NativeEndian.PutUint32(t.m.Value))
}

func (transparent) exprs(r *rendering) {
	r.add(&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1})
	r.equal([]byte{1})
}

func (t socketMark) exprs(r *rendering) {
	r.add(&expr.Socket{Key: expr.SocketKeyMark, Register: 1})
	r.bits(t.m.Mask, 0)
	r.equal(binaryutil.NativeEndian.PutUint32(t.m.Value))
}

func (counter) exprs(r *rendering) { r.add(&expr.Counter{}) }

func (t toProxy) exprs(r *rendering) {
	v := 4
	if t.to.Addr().Is6() {
		v = 6
	}
	r.add(&expr.Immediate{Register: 1, Data: t.to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(t.to.Port())},
		&expr.TProxy{Family: nfproto(v), TableFamily: unix.NFPROTO_INET, RegAddr: 1, RegPort: 2})
}

func (t setMark) exprs(r *rendering) {
	r.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1})
	r.bits(^t.m.Mask, t.m.Value)
	r.add(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
}

// flow loads the key of a flow set into the registers that follow 1 without a gap, in words of four octets.
func (r *rendering) flow(v int, reverse bool) {
	r.onTCP()
	src, dst, size, second := uint32(12), uint32(16), uint32(4), uint32(unix.NFT_REG32_00+1)
	if v == 6 {
		src, dst, size, second = 8, 24, 16, 2
	}
	sport, dport := uint32(0), uint32(2)
	if reverse {
		src, dst, sport, dport = dst, src, dport, sport
	}
	words := unix.NFT_REG32_00 + size/4 // the register after the first address
	if v == 4 {
		words = second
	}
	third := words + 1
	load := func(reg uint32, base expr.PayloadBase, offset, n uint32) {
		r.add(&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: n})
	}
	load(1, expr.PayloadBaseNetworkHeader, src, size)
	load(second, expr.PayloadBaseTransportHeader, sport, 2)
	load(third, expr.PayloadBaseNetworkHeader, dst, size)
	load(third+size/4, expr.PayloadBaseTransportHeader, dport, 2)
}

func (t flowIn) exprs(r *rendering) {
	r.flow(t.v, t.reverse)
	r.add(&expr.Lookup{SourceRegister: 1, SetName: t.set})
}

func (t flowUpdate) exprs(r *rendering) {
	r.flow(t.v, false)
	r.add(&expr.Dynset{SrcRegKey: 1, SetName: t.set, Operation: unix.NFT_DYNSET_OP_UPDATE})
}

func (t flowDelete) exprs(r *rendering) {
	const opDelete = 2 // NFT_DYNSET_OP_DELETE
	r.flow(t.v, false)
	r.add(&expr.Dynset{SrcRegKey: 1, SetName: t.set, Operation: opDelete})
}

func (t queueTo) exprs(r *rendering) {
	if !t.compat {
		r.add(&expr.Queue{Num: t.number, Total: 1, Flag: expr.QueueFlagBypass})
		return
	}
	// struct xt_NFQ_info_v3: queuenum, queues_total, flags (1: bypass), aligned to eight octets.
	info := make(xt.Unknown, 8)
	copy(info, binaryutil.NativeEndian.PutUint16(t.number))
	copy(info[2:], binaryutil.NativeEndian.PutUint16(1))
	copy(info[4:], binaryutil.NativeEndian.PutUint16(1))
	r.add(&expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info})
}

func (reject) exprs(r *rendering) { r.add(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}) }
func (accept) exprs(r *rendering) { r.add(&expr.Verdict{Kind: expr.VerdictAccept}) }

// ruleset speaks with the kernel about our table. A table that dies with us needs one lasting connection.
type ruleset struct{ owner *nftables.Conn }

func (k *ruleset) conn(own bool) (*nftables.Conn, error) {
	if k.owner != nil {
		return k.owner, nil
	}
	if !own {
		return nftables.New()
	}
	c, err := nftables.New(nftables.AsLasting())
	k.owner = c
	return c, err
}

func ourTable(p *Plan) *nftables.Table {
	t := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	if p != nil && p.Owner {
		t.Flags = nftables.TableFlagOwner
	}
	return t
}

// apply makes the kernel's table that of the plan, in one transaction. With fresh, what stands there is removed
// first, flow sets included; else the flow sets keep what they know, so that no connection is cut.
func (k *ruleset) apply(p *Plan, fresh bool, seed map[string][]nftables.SetElement) error {
	conn, err := k.conn(p.Owner)
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	have, err := chainNames(conn)
	if err != nil {
		return fmt.Errorf("list nft chains: %w", err)
	}
	table := ourTable(p)
	if fresh { // C1-35: whatever stands there, and however often this is done
		have = nil
		if there, err := tableThere(conn); err != nil {
			return err
		} else if there {
			conn.DelTable(table)
		}
	}
	conn.AddTable(table)
	sets := map[string]*nftables.Set{}
	for _, s := range p.Sets {
		set, err := k.addSet(conn, table, s)
		if err != nil {
			return fmt.Errorf("make nft set %s: %w", s.Name, err)
		}
		sets[s.Name] = set
	}
	for _, name := range have {
		chain := &nftables.Chain{Table: table, Name: name}
		conn.FlushChain(chain)
		if p.chain(name) == nil {
			conn.DelChain(chain)
		}
	}
	for i := range p.Chains {
		if err := addChain(conn, table, &p.Chains[i]); err != nil {
			return err
		}
	}
	for name, elements := range seed {
		if sets[name] != nil && len(elements) > 0 {
			if err := conn.SetAddElements(sets[name], elements); err != nil {
				return fmt.Errorf("fill nft set %s: %w", name, err)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write nft table %s: %w", TableName, explain(err))
	}
	if !p.Owner && k.owner != nil {
		err = k.owner.CloseLasting()
		k.owner = nil
	}
	return err
}

func tableThere(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nft tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == TableName }), nil
}

func (k *ruleset) addSet(conn *nftables.Conn, table *nftables.Table, s FlowSet) (*nftables.Set, error) {
	address := nftables.TypeIPAddr
	if s.Family == 6 {
		address = nftables.TypeIP6Addr
	}
	key, err := nftables.ConcatSetType(address, nftables.TypeInetService, address, nftables.TypeInetService)
	if err != nil {
		return nil, err
	}
	set := &nftables.Set{Table: table, Name: s.Name, KeyType: key, Concatenation: true, Dynamic: true,
		HasTimeout: true, Timeout: s.Timeout, Size: flowsMost}
	return set, conn.AddSet(set, nil)
}

func addChain(conn *nftables.Conn, table *nftables.Table, c *Chain) error {
	policy := nftables.ChainPolicyAccept
	hook := nftables.ChainHookPrerouting
	if c.Hook == "output" {
		hook = nftables.ChainHookOutput
	}
	chain := conn.AddChain(&nftables.Chain{Name: c.Name, Table: table, Type: nftables.ChainType(c.Type), Hooknum: hook,
		Priority: nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority)), Policy: &policy})
	for _, rule := range c.Rules {
		r := &rendering{conn: conn, table: table}
		for _, t := range rule.Terms {
			t.exprs(r)
		}
		if r.err != nil {
			return fmt.Errorf("make nft rule %q: %w", rule.String(), r.err)
		}
		out := &nftables.Rule{Table: table, Chain: chain, Exprs: r.out}
		if rule.Comment != "" {
			out.UserData = userdata.Append(nil, userdata.TypeComment, append([]byte(rule.Comment), 0))
		}
		conn.AddRule(out)
	}
	return nil
}

// explain adds to an error of the kernel what it usually means.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (root or CAP_NET_ADMIN is needed; or another process owns the table)", err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w (the kernel lacks an expression: CONFIG_NFT_TPROXY, CONFIG_NFT_SOCKET, CONFIG_NFT_FIB_INET, CONFIG_NFT_REJECT_INET are needed; see mailweir doctor)", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w (kernel without support; see mailweir doctor)", err)
	}
	return err
}

// elements reads the flow sets of the plan, to be carried over into a new table.
func (k *ruleset) elements(p *Plan) (map[string][]nftables.SetElement, error) {
	conn, err := k.conn(false)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	out := map[string][]nftables.SetElement{}
	for _, s := range p.Sets {
		set, err := conn.GetSetByName(ourTable(nil), s.Name)
		if err != nil {
			return nil, fmt.Errorf("find nft set %s: %w", s.Name, err)
		}
		list, err := conn.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("read nft set %s: %w", s.Name, err)
		}
		for _, e := range list {
			out[s.Name] = append(out[s.Name], nftables.SetElement{Key: e.Key})
		}
	}
	return out, nil
}

// chainNames lists the chains of our table; none when there is no table.
func chainNames(conn *nftables.Conn) ([]string, error) {
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range chains {
		if c.Table.Name == TableName {
			names = append(names, c.Name)
		}
	}
	return names, nil
}

// remove takes our table away, if there is one.
func (k *ruleset) remove() error {
	conn, err := k.conn(false)
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	there, err := tableThere(conn)
	if err != nil {
		return err
	}
	if there {
		conn.DelTable(ourTable(nil))
		err = conn.Flush()
	}
	if k.owner != nil {
		err = errors.Join(err, k.owner.CloseLasting())
		k.owner = nil
	}
	if err != nil {
		return fmt.Errorf("remove nft table %s: %w", TableName, explain(err))
	}
	return nil
}

// present says whether the kernel's table has the chains and the number of rules that the plan has.
func (k *ruleset) present(p *Plan) (bool, error) {
	counts, err := k.rules(func(string, uint64) {})
	if err != nil {
		return false, err
	}
	if len(counts) != len(p.Chains) {
		return false, nil
	}
	for _, c := range p.Chains {
		if n, ok := counts[c.Name]; !ok || n != len(c.Rules) {
			return false, nil
		}
	}
	return true, nil
}

// rules counts the rules of each chain, and calls visit with comment and packets of every rule that has a counter.
func (k *ruleset) rules(visit func(comment string, packets uint64)) (map[string]int, error) {
	conn, err := k.conn(false)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	names, err := chainNames(conn)
	if err != nil {
		return nil, fmt.Errorf("list nft chains: %w", err)
	}
	counts := map[string]int{}
	table := ourTable(nil)
	for _, name := range names {
		rules, err := conn.GetRules(table, &nftables.Chain{Table: table, Name: name})
		if err != nil {
			return nil, fmt.Errorf("list nft rules of %s: %w", name, err)
		}
		counts[name] = len(rules)
		for _, r := range rules {
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
					visit(comment, c.Packets)
				}
			}
		}
	}
	return counts, nil
}
