package tlstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	"testing"
	"time"
)

// TBS is the part of a certificate that is signed, with everything open to change.
type TBS struct {
	Version            int `asn1:"optional,explicit,default:0,tag:0"`
	SerialNumber       *big.Int
	SignatureAlgorithm pkix.AlgorithmIdentifier
	Issuer             asn1.RawValue
	Validity           struct{ NotBefore, NotAfter time.Time }
	Subject            asn1.RawValue
	PublicKey          asn1.RawValue
	Extensions         []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

type certificate struct {
	TBS                asn1.RawValue
	SignatureAlgorithm pkix.AlgorithmIdentifier
	Signature          asn1.BitString
}

// Hashes with which Resign signs.
const (
	MD5    = crypto.MD5
	SHA1   = crypto.SHA1
	SHA256 = crypto.SHA256
)

// Resign changes the certificate der and signs it anew with key and hash, whatever crypto/x509 would think of it.
func Resign(t testing.TB, der []byte, key crypto.Signer, hash crypto.Hash, edit func(*TBS)) []byte {
	t.Helper()
	var c certificate
	var tbs TBS
	must(t, unmarshal(der, &c))
	must(t, unmarshal(c.TBS.FullBytes, &tbs))
	if edit != nil {
		edit(&tbs)
	}
	alg := algorithm(key, hash)
	tbs.SignatureAlgorithm = alg
	signed, err := asn1.Marshal(tbs)
	must(t, err)
	var digest []byte
	switch hash {
	case MD5:
		d := md5.Sum(signed)
		digest = d[:]
	case SHA1:
		d := sha1.Sum(signed)
		digest = d[:]
	default:
		d := sha256.Sum256(signed)
		digest = d[:]
	}
	sig, err := key.Sign(rand.Reader, digest, hash)
	must(t, err)
	out, err := asn1.Marshal(certificate{asn1.RawValue{FullBytes: signed}, alg, asn1.BitString{Bytes: sig, BitLength: len(sig) * 8}})
	must(t, err)
	return out
}

func algorithm(key crypto.Signer, hash crypto.Hash) pkix.AlgorithmIdentifier {
	if _, ok := key.Public().(*ecdsa.PublicKey); ok {
		if hash == SHA1 {
			return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}}
		}
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}
	}
	last := map[crypto.Hash]int{MD5: 4, SHA1: 5, SHA256: 11}[hash]
	return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, last}, Parameters: asn1.NullRawValue}
}

// Corrupt returns der with another signature than it had.
func Corrupt(t testing.TB, der []byte) []byte {
	t.Helper()
	var c certificate
	must(t, unmarshal(der, &c))
	c.Signature.Bytes[len(c.Signature.Bytes)-3] ^= 1
	out, err := asn1.Marshal(c)
	must(t, err)
	return out
}

// P192 and DSA are public keys of kinds that Go does not use, as SubjectPublicKeyInfo. P192 is the curve's base point.
func P192() asn1.RawValue {
	point := "\x04\x18\x8d\xa8\x0e\xb0\x30\x90\xf6\x7c\xbf\x20\xeb\x43\xa1\x88\x00\xf4\xff\x0a\xfd\x82\xff\x10\x12" +
		"\x07\x19\x2b\x95\xff\xc8\xda\x78\x63\x10\x11\xed\x6b\x24\xcd\xd5\x73\xf9\x77\xa1\x1e\x79\x48\x11"
	der, _ := asn1.Marshal(struct {
		Alg struct{ ID, Curve asn1.ObjectIdentifier }
		Key asn1.BitString
	}{struct{ ID, Curve asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 1}},
		asn1.BitString{Bytes: []byte(point), BitLength: len(point) * 8}})
	return asn1.RawValue{FullBytes: der}
}

// DSA: see P192. The numbers are of the right size and mean nothing.
func DSA() asn1.RawValue {
	n := func(bits uint) *big.Int {
		return new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), bits-1), big.NewInt(7))
	}
	y, _ := asn1.Marshal(n(1023))
	der, _ := asn1.Marshal(struct {
		Alg struct {
			ID     asn1.ObjectIdentifier
			Params struct{ P, Q, G *big.Int }
		}
		Key asn1.BitString
	}{struct {
		ID     asn1.ObjectIdentifier
		Params struct{ P, Q, G *big.Int }
	}{asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1}, struct{ P, Q, G *big.Int }{n(1024), n(160), n(1020)}},
		asn1.BitString{Bytes: y, BitLength: len(y) * 8}})
	return asn1.RawValue{FullBytes: der}
}

// SmallRSA is an RSA key of a length that crypto/rsa refuses to make or use. It signs PKCS #1 v1.5 only.
type SmallRSA struct{ n, d *big.Int }

// NewSmallRSA makes one.
func NewSmallRSA(t testing.TB, bits int) *SmallRSA {
	t.Helper()
	one, e := big.NewInt(1), big.NewInt(65537)
	for {
		p, err := rand.Prime(rand.Reader, bits/2)
		must(t, err)
		q, err := rand.Prime(rand.Reader, bits-bits/2)
		must(t, err)
		n := new(big.Int).Mul(p, q)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(e, phi)
		if d != nil && n.BitLen() == bits && p.Cmp(q) != 0 {
			return &SmallRSA{n, d}
		}
	}
}

// Public implements crypto.Signer.
func (k *SmallRSA) Public() crypto.PublicKey { return &rsa.PublicKey{N: k.n, E: 65537} }

// Sign implements crypto.Signer: RFC 8017 §8.2.1 for SHA-256.
func (k *SmallRSA) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	size := (k.n.BitLen() + 7) / 8
	info := append([]byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}, digest...)
	em := make([]byte, size)
	em[1] = 1
	for i := 2; i < size-len(info)-1; i++ {
		em[i] = 0xff
	}
	copy(em[size-len(info):], info)
	return new(big.Int).Exp(new(big.Int).SetBytes(em), k.d, k.n).FillBytes(make([]byte, size)), nil
}

// Parse reads a certificate.
func Parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}

func unmarshal(der []byte, to any) error {
	_, err := asn1.Unmarshal(der, to)
	return err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
