from afv_metric.suggestions import did_you_mean, explain_lpips


def test_names_that_are_like_a_word_are_suggested():
    assert did_you_mean("iteration", ["iterations", "width"]) == "; did you mean 'iterations'?"
    assert did_you_mean("LPIPS", ["lpips-alex", "lpips-vgg", "l2"]) == "; did you mean 'lpips-vgg' or 'lpips-alex'?"
    assert did_you_mean("abacus", ["width"]) == did_you_mean("", []) == ""


def test_networks_of_lpips_are_recognised():
    assert "'VGG' is a network of lpips" in explain_lpips("VGG")
    assert explain_lpips("my-vgg") == ""
