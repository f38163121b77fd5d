"""Scales on the sites of transformers, by hooks or in their weights.

Multiplying a branch output by s equals multiplying its gate by s (spec section 1). A forward hook
does it while coefficients change; fusing folds s into the weights of the branch's last linear when
they are final.
"""
