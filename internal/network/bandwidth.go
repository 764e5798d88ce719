package network

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"

	"github.com/crid/crid/internal/errdef"
)

// The pod annotations that limit bandwidth; Kubernetes quantities in bits a second.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// The range that Kubernetes allows for a bandwidth.
const (
	minRate = 1_000
	maxRate = 1_000_000_000_000_000
)

// Bandwidth reads the limits of traffic to (ingress) and from (egress) a pod out of its annotations, in bits
// a second; 0 means no limit. Invalid names the annotation and its value.
func Bandwidth(annotations map[string]string) (ingress, egress int64, err error) {
	if ingress, err = rate(annotations, ingressAnnotation); err != nil {
		return 0, 0, err
	}
	if egress, err = rate(annotations, egressAnnotation); err != nil {
		return 0, 0, err
	}
	return ingress, egress, nil
}

func rate(annotations map[string]string, key string) (int64, error) {
	value, ok := annotations[key]
	if !ok {
		return 0, nil
	}
	n, ok := quantity(value)
	if !ok {
		return 0, fmt.Errorf("annotation %s=%q: not a quantity such as 10M or 1Gi: %w", key, value, errdef.Invalid)
	}
	if n.Cmp(big.NewInt(minRate)) < 0 || n.Cmp(big.NewInt(maxRate)) > 0 {
		return 0, fmt.Errorf("annotation %s=%q: not between 1k and 1P bits a second: %w", key, value, errdef.Invalid)
	}
	return n.Int64(), nil
}

// quantityForm is a Kubernetes quantity: number, then a suffix or a decimal exponent. The lengths keep the
// arithmetic small; nothing longer lies in the range.
var quantityForm = regexp.MustCompile(`^([+-]?(?:[0-9]{1,24}(?:\.[0-9]{0,24})?|\.[0-9]{1,24}))(?:([eE])([+-]?[0-9]{1,2})|(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]?))$`)

// quantity parses a Kubernetes quantity; fractions round up, as they do there.
func quantity(s string) (*big.Int, bool) {
	m := quantityForm.FindStringSubmatch(s)
	if m == nil {
		return nil, false
	}
	n, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return nil, false
	}
	scale := suffixScale(m[4])
	if m[2] != "" {
		exp, err := strconv.Atoi(m[3])
		if err != nil {
			return nil, false
		}
		scale = power(10, exp)
	}
	n.Mul(n, scale)
	whole, rest := new(big.Int).QuoRem(n.Num(), n.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	return whole, true
}

// suffixScale is the factor that a suffix stands for: "k" is 1000, "Ki" is 1024, "m" is 1/1000.
func suffixScale(suffix string) *big.Rat {
	const decimal = "kMGTPE"
	const small = "mun"
	if suffix == "" {
		return power(10, 0)
	}
	if len(suffix) == 2 {
		return power(1024, strings.IndexByte("KMGTPE", suffix[0])+1)
	}
	if i := strings.IndexByte(small, suffix[0]); i >= 0 {
		return power(10, -3*(i+1))
	}
	return power(10, 3*(strings.IndexByte(decimal, suffix[0])+1))
}

func power(base int64, exp int) *big.Rat {
	n := new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(max(exp, -exp))), nil)
	if exp < 0 {
		return new(big.Rat).SetFrac(big.NewInt(1), n)
	}
	return new(big.Rat).SetInt(n)
}
