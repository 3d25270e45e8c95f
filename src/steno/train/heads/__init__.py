"""Training the trained parts of drafters on a frozen model: one network per method, a recipe beside each.

The model itself writes the text the parts are trained on, so that they learn what it says, not what people say. Its
states come through `Session`, as they will when drafting.
"""
