package lambda

import (
	"encoding/json"
	"strings"
)

// SealedRows are what the keys of the store begin with whose values have environments.
var SealedRows = []string{functionKeys, revisionKeys}

// Reseal returns a row of SealedRows with its environments encrypted again, and reports
// whether any has changed. again does that to what a [Sealer] has encrypted for a context.
func Reseal(key string, value []byte, again func(context string, sealed []byte) ([]byte, bool, error)) (_ []byte, changed bool, err error) {
	reseal := func(context string, sealed *[]byte) error {
		if *sealed == nil {
			return nil
		}
		b, other, err := again(context, *sealed)
		if err != nil {
			return err
		}
		*sealed, changed = b, changed || other
		return nil
	}
	var row any
	if name, ok := strings.CutPrefix(key, functionKeys); ok {
		var rec record
		if err := decodeRow(key, value, &rec); err != nil {
			return nil, false, err
		}
		for _, d := range []*definition{rec.Current, rec.Next} {
			if d != nil {
				if err := reseal(functionKeys+name, &d.Env); err != nil {
					return nil, false, err
				}
			}
		}
		row = &rec
	} else {
		var rev revisionRow
		if err := decodeRow(key, value, &rev); err != nil {
			return nil, false, err
		}
		if err := reseal(functionKeys+rev.Name, &rev.Env); err != nil {
			return nil, false, err
		}
		row = &rev
	}
	if !changed {
		return value, false, nil
	}
	b, err := json.Marshal(row)
	return b, true, err
}
